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
from mixprec.models.decoder import Decoder
from mixprec.models.gguf import metadata
from mixprec.models.gguf.names import ROPE_TENSOR, gguf_names, reordered, shifted
from mixprec.models.tensors import COMPUTABLE, check_finite
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
    """One tensor of the file: its name there, ``shape`` in weights, type, and where its rows come from."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    load: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        """Bytes of its data, without what fills it up."""
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return int(math.prod(self.shape) // block * size)


def predicted(plan: Plan, inventory: Decoder, config: PretrainedConfig) -> Iterator[Entry]:
    """The file's tensors from the configuration alone; they can't be loaded."""
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else torch.bfloat16
    planned = {module.weight_name: module for module in inventory.planned(plan.modules)}
    for name, known in gguf_names(config).items():
        if name in planned:
            module = planned[name]
            format = plan.formats[module.address]
            if isinstance(format, Format):
                format = exact_type(format, module.in_features) or format
            kind = ggml_type(format.name) if isinstance(format, GgmlFormat) else _DTYPES[stored]
            yield Entry(known, (module.out_features, module.in_features), kind, _nothing)
        elif name in inventory.other:
            matrix = name in (inventory.embedding_weight, inventory.head_weight)
            count = inventory.other[name]
            shape = (count // config.hidden_size, config.hidden_size) if matrix else (count,)
            yield Entry(known, shape, _DTYPES[stored if matrix else torch.float32], _nothing)
    yield from _rope(config)


def _nothing() -> Tensor:
    raise NotImplementedError("a predicted tensor has no data")


def _rope(config: PretrainedConfig) -> Iterator[Entry]:
    factors = metadata.rope_factors(config)
    if factors is not None:
        yield Entry(ROPE_TENSOR, tuple(factors.shape), gguf.GGMLQuantizationType.F32, lambda: factors)


def entries(job: Finish) -> Iterator[Entry]:
    """The file's tensors in llama.cpp's order, those that changed from the blocks' files."""
    changed: dict[str, tuple[Path, str]] = {}
    for file in job.blocks:
        with artifacts.open_tensors(file) as opened:
            for key in opened.keys():  # noqa: SIM118 (no mapping)
                address, packed, _ = key.partition(PACKED)
                changed[f"{address}.weight" if packed else key] = (file, key)
    for name, known in gguf_names(job.config).items():
        found = _found(name, changed, job)
        if found is not None and not left_out(name, job.inventory):
            file, key, shape, dtype = found
            kind = _kind(key, dtype, len(shape))
            yield Entry(known, shape, kind, _loader(file, key, name, kind, job.config))
    yield from _rope(job.config)


def _found(
    name: str, changed: Mapping[str, tuple[Path, str]], job: Finish
) -> tuple[Path, str, tuple[int, ...], str] | None:
    """File, name there, shape and stored type of the tensor ``name``; None where the model has none.

    A source that is packed itself has no weight of this name where the blocks' files have packed rows.
    """
    info = job.source.tensors.get(name)
    if name in changed:
        module = next((each for each in job.inventory.matrices if each.weight_name == name), None)
        shape = (module.out_features, module.in_features) if module else info.shape if info else ()
        return (*changed[name], shape, info.dtype if info else "")
    return None if info is None else (job.source.folder / info.shard, name, info.shape, info.dtype)


def _kind(key: str, dtype: str, dimensions: int) -> gguf.GGMLQuantizationType:
    _, packed, kind = key.partition(PACKED)
    if packed:
        return ggml_type(kind)
    return _DTYPES[COMPUTABLE[dtype]] if dimensions > 1 else _DTYPES[torch.float32]


def _loader(
    file: Path, key: str, name: str, kind: gguf.GGMLQuantizationType, config: PretrainedConfig
) -> Callable[[], Tensor]:
    """Reads a tensor's rows."""

    def load() -> Tensor:
        with artifacts.open_tensors(file) as opened:
            tensor: Tensor = opened.get_tensor(key)
        check_finite(f"{file}: {key}", tensor)
        rows = reordered(name, tensor, config)
        return shifted(name, rows.float(), config) if kind == gguf.GGMLQuantizationType.F32 else rows

    return load


def left_out(name: str, decoder: Decoder) -> bool:
    """Tensors that are computed, or stored twice."""
    return (decoder.tied and name == decoder.head_weight) or is_computed(name)
