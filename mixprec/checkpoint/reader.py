"""Checkpoints read back, whoever wrote them: each linear module's format and weight, without any runtime.

Dense, compressed-tensors (pack-quantized, dense or padded words) and GPTQ (both layouts, reordered columns too), each
by its own CheckpointFormat; files of llama.cpp by checkpoint/gguf/checkpoint.py.
Used by inspect, diff and convert, and to evaluate packed checkpoints.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from mixprec.checkpoint import quantization
from mixprec.checkpoint.base import Held
from mixprec.checkpoint.packings import IN_SAFETENSORS, PACKINGS
from mixprec.checkpoint.patterns import Matcher
from mixprec.checkpoint.said import Grid
from mixprec.checkpoint.shards import CONFIG
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.models.complete import check_complete, is_computed
from mixprec.models.config import load_config
from mixprec.models.decoder import Decoder, Linear, decoder_of
from mixprec.models.source import FLOATS, Source, open_source
from mixprec.numerics import storage
from mixprec.numerics.formats import KEEP, AnyFormat, Format
from mixprec.numerics.groupwise import Quantized

#: Scales of what runtimes quantize while they run.
_RUN_TIME = frozenset(
    f"{what}_{kind}" for what in ("input", "output", "q", "k", "v") for kind in ("scale", "zero_point", "global_scale")
)


@dataclass(frozen=True)
class Layout:
    """How a module lies in a checkpoint.

    ``bytes``: of all its tensors but a bias; ``dtype``: of a weight that isn't packed, as safetensors and GGUF name it
    in lower case (``bf16``).
    """

    container: str
    format: AnyFormat
    bytes: int
    dtype: str = ""

    @property
    def name(self) -> str:
        """Its format, or the type of a weight that isn't packed."""
        return self.dtype or str(self.format)


class Checkpoint:
    """A folder of safetensors files with its modules' layouts; weights are read one module at a time.

    Raises UserError, here and below, for broken files and for what no reader here knows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._patterns = Matcher(path / CONFIG)
        self.shapes: PretrainedConfig = load_config(str(path))
        self.config: dict[str, Any] = artifacts.read_object(path / CONFIG, finite=False)
        self.packing = quantization.read(path, self.config)
        self.source: Source = open_source(path)
        self.inventory: Decoder = decoder_of(self.shapes)
        self._check()

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not read here: what runtimes quantize besides, and buffers that models compute themselves."""
        computed = [name for name in self.source.tensors if is_computed(name)]
        said = (
            [f"{len(computed)} tensors are computed from {CONFIG}, not read, such as {computed[0]}"] if computed else []
        )
        return (*self._unsimulated, *said)

    @property
    def _unsimulated(self) -> tuple[str, ...]:
        return () if self.packing is None else self.packing.notes

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """Address -> layout, in the model's order."""
        return {module.address: self._layout(module) for module in self.inventory.linears}

    @property
    def container(self) -> str:
        """The checkpoint's format: that of its packed modules, or dense."""
        return next((found.container for found in self.layouts.values() if found.container != "dense"), "dense")

    def weight(self, module: Linear, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight (out, in) that a module stands for, rounded once to ``dtype``."""
        held, order = self._held(module), self.order(module)
        if order is None:
            return storage.dequantize(*held, dtype)
        assert isinstance(held.quantized, Quantized)
        # Columns sorted by group are what dequantize knows; afterwards they go back to their places.
        quantized = held.quantized._replace(codes=held.quantized.codes[:, order])
        sorted_ = storage.dequantize(quantized, held.format, dtype)
        return torch.empty_like(sorted_).index_copy_(1, order, sorted_)

    def quantized(self, module: Linear) -> Quantized:
        """Codes and grid of a packed module, columns where they are."""
        quantized = self._held(module).quantized
        assert isinstance(quantized, Quantized)
        return quantized

    def _held(self, module: Linear) -> Held:
        """What a module's tensors hold."""
        layout = self.layouts[module.address]
        tensors = {name: self.tensor(name) for name in self.names(module)}
        try:
            return IN_SAFETENSORS[layout.container].read(module, tensors, layout.format, self.packing)
        except UserError as problem:
            raise UserError(f"{self.path}: {problem}") from None
        except (KeyError, RuntimeError) as problem:
            raise UserError(
                f"{self.path}: {module.address}: can't be unpacked as {layout.format} ({problem})"
            ) from None

    def order(self, module: Linear) -> Tensor | None:
        """Columns sorted by their groups, where they don't lie so already (GPTQ's act order); else None."""
        packing = PACKINGS.get(self.layouts[module.address].container)
        if packing is None or f"{module.address}.{packing.columns}" not in self.source.tensors:
            return None
        index = self.tensor(f"{module.address}.{packing.columns}")
        order = torch.argsort(index, stable=True)
        return None if bool((index[1:] >= index[:-1]).all()) else order

    def state(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """All tensors by the names and shapes of the uncompressed model, floats in ``dtype``."""
        packed = [module for module in self.inventory.linears if self.layouts[module.address].container != "dense"]
        left_out = {name for module in packed for name in self.names(module)}
        found = {name: self.tensor(name) for name in self.source.tensors if name not in left_out}
        found = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in found.items()}
        return found | {module.weight_name: self.weight(module, dtype) for module in packed}

    def tensor(self, name: str) -> Tensor:
        """One tensor by its full name."""
        info = self.source.tensors[name]
        with artifacts.open_tensors(self.path / info.shard) as file:
            found: Tensor = file.get_tensor(name)
            return found

    def names(self, module: Linear) -> list[str]:
        """Full names of a module's tensors but its bias."""
        prefix = f"{module.address}."
        return [name for name in self.source.tensors if name.startswith(prefix) and name != f"{prefix}bias"]

    def _check(self) -> None:
        """All tensors of the model are there and no others, packed ones in the place of their weights."""
        containers = {module.address: self._container(module) for module in self.inventory.linears}
        packed = {
            address: PACKINGS[container].parts for address, container in containers.items() if container in PACKINGS
        }
        found = {name: info.shape for name, info in self.source.tensors.items() if not self._is_packing(name, packed)}
        for address in packed:
            module = self.inventory[address]
            if module.weight_name in found:
                raise UserError(f"{self.path}: {address} is there packed and as a weight; fetch one checkpoint's files")
            found[module.weight_name] = (module.out_features, module.in_features)
        other = quantization.by_files(self.path) if self.packing is None else None
        try:
            check_complete(self.path, found, self.shapes)
        except UserError as problem:
            if other is None:
                raise
            raise UserError(f"{problem}; it looks quantized by {other}: {quantization.REMEDY}") from None
        if packed and self.packing is None:
            by = f"; {other} is not read" if other else ""
            raise UserError(f"{self.path}: {next(iter(packed))} is packed, {CONFIG} has no quantization_config{by}")

    def _is_packing(self, name: str, packed: Mapping[str, Container[str]]) -> bool:
        """Whether a tensor is one of those that hold a packed weight, or belongs to what runtimes quantize besides.

        AutoGPTQ writes biases of zeros where the architecture has none.
        """
        module, _, part = name.rpartition(".")
        if module in packed and part in packed[module]:
            return True
        if module in packed and part == "bias" and name not in self.inventory.other:
            return not self.tensor(name).any()
        return bool(self._unsimulated) and part in _RUN_TIME

    def _container(self, module: Linear) -> str:
        """The format of a module's tensors; that of one without any is dense."""
        found = self.source.tensors
        marked = (name for name, packing in PACKINGS.items() if f"{module.address}.{packing.mark}" in found)
        return next(marked, "dense")

    def _layout(self, module: Linear) -> Layout:
        container = self._container(module)
        size = sum(self.source.tensors[name].bytes for name in self.names(module))
        said = self.packing.grid(module.address, self._patterns) if self.packing else None
        if container == "dense":
            info = self.source.tensors[module.weight_name]
            if info.dtype not in FLOATS:
                raise UserError(
                    f"{self.path / info.shard}: {module.weight_name} is stored as {info.dtype}; weights must be "
                    f"{', '.join(FLOATS)} (is this checkpoint quantized already?)"
                )
            if said is not None:
                raise UserError(
                    f"{self.path / CONFIG}: quantization_config means {module.address}, whose weight is not packed: "
                    "runtimes would find nothing to load; mend it, or make the checkpoint again"
                )
            return Layout(container, KEEP, size, info.dtype.lower())
        where = f"{self.path / CONFIG}: quantization_config"
        if said is None:
            raise UserError(f"{where} does not mean {module.address}, which is packed")
        if self.packing is not None and container != self.packing.quant_method:
            raise UserError(f"{where} is of {self.packing.quant_method}, {module.address} is packed as {container}")
        format = self._format(module, said)
        packing = PACKINGS[container]
        for name, shapes in packing.shapes(module, format).items():
            # Where all groups lie one after the other, nothing need say which column is in which.
            self._check_shape(f"{module.address}.{name}", *shapes, optional=name == packing.columns)
        return Layout(container, format, size)

    def _check_shape(self, name: str, *shapes: tuple[int, ...], optional: bool) -> None:
        info = self.source.tensors.get(name)
        if info is None:
            if optional:
                return
            raise UserError(f"{self.path}: {name} is missing; fetch the whole checkpoint again")
        if info.shape not in shapes:
            found, wanted = (" x ".join(map(str, shape)) for shape in (info.shape, shapes[0]))
            where = self.path / info.shard
            raise UserError(f"{where}: {name} is {found}, {CONFIG} asks for {wanted}: they are not of one checkpoint")

    def _format(self, module: Linear, said: Grid) -> Format:
        try:
            return Format(*said)
        except ValueError:
            bits, group, _ = said
            where = self.path / CONFIG
            raise UserError(f"{where}: {module.address}: {bits} bits in groups of {group} are not read here") from None
