"""The tensors of a GGUF file: name, shape, type, and where the rows come from; beforehand or for writing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import gguf
import torch
from torch import Tensor
from transformers import PretrainedConfig

from mixprec.checkpoint.base import Finish
from mixprec.core import artifacts
from mixprec.models.complete import is_computed
from mixprec.models.decoder import Decoder, Linear
from mixprec.models.gguf import metadata
from mixprec.models.gguf.latent import KEYS_AND_VALUES, halves
from mixprec.models.gguf.names import ROPE_TENSOR, is_expert, is_router, reordered, shifted, wholes
from mixprec.models.source import TensorInfo
from mixprec.models.tensors import COMPUTABLE, check_finite, take
from mixprec.numerics.formats import Format, GgmlFormat
from mixprec.numerics.ggml import exact_type, ggml_type
from mixprec.plan.schema import Plan

#: Behind a module's address in a block's file: the type of its packed rows.
PACKED = ".ggml_"
_DTYPES: Final = {
    torch.float16: gguf.GGMLQuantizationType.F16,
    torch.bfloat16: gguf.GGMLQuantizationType.BF16,
    torch.float32: gguf.GGMLQuantizationType.F32,
}


class Entry(NamedTuple):
    """One tensor of the file: its name there, ``shape`` in weights, type, and its rows, an expert's after another."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    load: Callable[[], Iterator[Tensor]]

    @property
    def bytes(self) -> int:
        """Bytes of its data, without what fills it up."""
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return int(math.prod(self.shape) // block * size)


class Part(NamedTuple):
    """A tensor of the model: its shape, the type that it gets in the file, and its rows."""

    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    load: Callable[[], Tensor]


def _assembled(known: str, names: tuple[str, ...], parts: list[Part], config: PretrainedConfig) -> Iterator[Entry]:
    """What the file holds of ``parts``, the tensors ``names``, whose name there is ``known``."""
    first = parts[0]
    if is_expert(names[0]):
        assert len({part.kind for part in parts}) == 1  # problems() refuses all others
        yield Entry(known, (len(parts), *first.shape), first.kind, lambda: (part.load() for part in parts))
    elif known.endswith(KEYS_AND_VALUES):
        for half in halves(known, first.kind, first.shape[1], first.load, config):
            yield Entry(half.name, half.shape, half.kind, lambda half=half: iter((half.load(),)))  # type: ignore[misc]
    else:
        # llama.cpp has the matrix of one row that weighs a shared expert as a vector.
        shape = first.shape[1:] if is_router(known) and first.shape[0] == 1 else first.shape
        yield Entry(known, shape, first.kind, lambda: iter((first.load(),)))


def predicted(plan: Plan, inventory: Decoder, config: PretrainedConfig) -> Iterator[Entry]:
    """The file's tensors from the configuration alone; they can't be loaded."""
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else torch.bfloat16
    planned = {module.weight_name: module for module in inventory.planned(plan.modules)}
    formats = plan.formats

    def part(name: str, known: str) -> Part | None:
        if name in planned:
            module = planned[name]
            format = formats[module.address]
            if isinstance(format, Format):
                format = exact_type(format, module.in_features) or format
            kind = ggml_type(format.name) if isinstance(format, GgmlFormat) else _DTYPES[stored]
            return Part((module.out_features, module.in_features), kind, _nothing)
        if name not in inventory.other:
            return None
        shape = inventory.shapes[name]
        matrix = len(shape) > 1 and not is_router(known)
        return Part(shape, _DTYPES[stored if matrix else torch.float32], _nothing)

    yield from _all(config, part)


def _all(config: PretrainedConfig, part: Callable[[str, str], Part | None]) -> Iterator[Entry]:
    for known, names in wholes(config).items():
        parts = [found for name in names if (found := part(name, known)) is not None]
        if parts:
            yield from _assembled(known, names, parts, config)
    yield from _rope(config)


def _nothing() -> Tensor:
    raise NotImplementedError("a predicted tensor has no data")


def _rope(config: PretrainedConfig) -> Iterator[Entry]:
    factors = metadata.rope_factors(config)
    if factors is not None:
        yield Entry(ROPE_TENSOR, tuple(factors.shape), gguf.GGMLQuantizationType.F32, lambda: iter((factors,)))


def entries(job: Finish) -> Iterator[Entry]:
    """The file's tensors in llama.cpp's order, those that changed from the blocks' files."""
    changed: dict[str, tuple[Path, str]] = {}
    for file in job.blocks:
        with artifacts.open_tensors(file) as opened:
            for key in opened.keys():  # noqa: SIM118 (no mapping)
                address, packed, _ = key.partition(PACKED)
                changed[f"{address}.weight" if packed else key] = (file, key)
    modules = {module.weight_name: module for module in job.inventory.matrices}

    def part(name: str, known: str) -> Part | None:
        return None if left_out(name, job.inventory) else _part(name, known, changed, modules.get(name), job)

    yield from _all(job.config, part)


def _part(
    name: str, known: str, changed: Mapping[str, tuple[Path, str]], module: Linear | None, job: Finish
) -> Part | None:
    """The tensor ``name`` as it is now; None where the model has none.

    A source that is packed itself has no weight of this name where the blocks' files have packed rows.
    """
    info = job.source.tensors.get(name)
    if name in changed:
        file, key = changed[name]
        shape = (module.out_features, module.in_features) if module else info.shape if info else ()
        kind = _kind(known, key, info.dtype if info else "", len(shape))
        return Part(shape, kind, _loader(file, key, name, None, kind, job.config))
    if info is None:
        return None
    kind = _kind(known, name, info.dtype, len(info.shape))
    return Part(info.shape, kind, _loader(job.source.folder / info.shard, name, name, info, kind, job.config))


def _kind(known: str, key: str, dtype: str, dimensions: int) -> gguf.GGMLQuantizationType:
    _, packed, kind = key.partition(PACKED)
    if packed:
        return ggml_type(kind)
    return _DTYPES[COMPUTABLE[dtype] if dimensions > 1 and not is_router(known) else torch.float32]


def _loader(
    file: Path,
    key: str,
    name: str,
    info: TensorInfo | None,
    kind: gguf.GGMLQuantizationType,
    config: PretrainedConfig,
) -> Callable[[], Tensor]:
    """Reads a tensor's rows. ``info``: of one of the source."""

    def load() -> Tensor:
        with artifacts.open_tensors(file) as opened:
            tensor: Tensor = opened.get_tensor(key) if info is None else take(opened, key, info)
        check_finite(f"{file}: {key}", tensor)
        rows = reordered(name, tensor, config)
        return shifted(name, rows.float(), config) if kind == gguf.GGMLQuantizationType.F32 else rows

    return load


def left_out(name: str, decoder: Decoder) -> bool:
    """Tensors that are computed, or stored twice."""
    return (decoder.tied and name == decoder.head_weight) or is_computed(name)
