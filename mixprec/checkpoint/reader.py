"""Checkpoints read back, whoever wrote them: each linear module's format and weight, without any runtime.

Dense, compressed-tensors (pack-quantized, dense or padded words) and GPTQ (both layouts, reordered columns too); files
of llama.cpp by checkpoint/gguf/checkpoint.py.
Used by inspect, diff and convert, and to evaluate packed checkpoints.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from mixprec.checkpoint import compressed_tensors, gptq, quantization
from mixprec.checkpoint.patterns import Matcher
from mixprec.checkpoint.shards import CONFIG
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.models.complete import check_complete, is_computed
from mixprec.models.config import load_config
from mixprec.models.decoder import Decoder, Linear, decoder_of
from mixprec.models.source import FLOATS, Source, open_source
from mixprec.numerics import packing
from mixprec.numerics.formats import KEEP, AnyFormat, Format, Keep
from mixprec.numerics.groupwise import Quantized, dequantize

#: What a packed module has in the place of its weight -> the format that has it so.
_SUFFIXES = {compressed_tensors.PACKED: "compressed-tensors", gptq.CODES: "gptq"}
_COLUMNS = "weight_g_idx"
#: Where all groups lie one after the other, nothing need say which column is in which.
_OPTIONAL = (_COLUMNS, gptq.INDEX)
#: Format -> all tensors that a packed weight can lie in, by their names within the module.
_PARTS = {
    "compressed-tensors": frozenset(
        {
            compressed_tensors.PACKED,
            compressed_tensors.SCALE,
            compressed_tensors.SHAPE,
            compressed_tensors.ZERO,
            _COLUMNS,
        }
    ),
    "gptq": frozenset({gptq.CODES, gptq.ZEROS, gptq.SCALES, gptq.INDEX}),
}
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
        layout = self.layouts[module.address]
        if isinstance(layout.format, Keep):
            return self.tensor(module.weight_name).to(dtype)
        assert isinstance(layout.format, Format)
        quantized = self.quantized(module)
        order = self.order(module)
        if order is None:
            return dequantize(quantized, layout.format, dtype)
        # Columns sorted by group are what dequantize knows; afterwards they go back to their places.
        sorted_ = dequantize(Quantized(quantized.codes[:, order], quantized.grid), layout.format, dtype)
        return torch.empty_like(sorted_).index_copy_(1, order, sorted_)

    def quantized(self, module: Linear) -> Quantized:
        """Codes and grid of a packed module, columns where they are."""
        layout = self.layouts[module.address]
        assert isinstance(layout.format, Format)
        tensors = self._tensors(module)
        try:
            if layout.container == "gptq":
                tensors.setdefault(gptq.INDEX, torch.zeros(module.in_features, dtype=torch.int32))
                assert isinstance(self.packing, quantization.Gptq)
                self._check_zeros(module, tensors, layout.format)
                return gptq.unpack_codes(tensors, layout.format, shifted=self.packing.shifted)
            return compressed_tensors.unpack_codes(_unpadded(tensors, layout.format, module), layout.format)
        except (KeyError, RuntimeError) as problem:
            raise UserError(
                f"{self.path}: {module.address}: can't be unpacked as {layout.format} ({problem})"
            ) from None

    def _check_zeros(self, module: Linear, tensors: Mapping[str, Tensor], format: Format) -> None:
        """Some readers of GPTQ add the zero points of a symmetric grid, others pass over them: they have to be one."""
        if format.symmetric and gptq.ZEROS in tensors:
            zeros = packing.unpack(tensors[gptq.ZEROS], format.bits, module.out_features)
            shifted = isinstance(self.packing, quantization.Gptq) and self.packing.shifted
            if (zeros != 2 ** (format.bits - 1) - shifted).any():
                raise UserError(f"{self.path}: {module.address}.{gptq.ZEROS} are not those of a symmetric grid")

    def order(self, module: Linear) -> Tensor | None:
        """Columns sorted by their groups, where they don't lie so already (GPTQ's act order); else None."""
        name = {"gptq": gptq.INDEX, "compressed-tensors": _COLUMNS}.get(self.layouts[module.address].container)
        if name is None or f"{module.address}.{name}" not in self.source.tensors:
            return None
        index = self.tensor(f"{module.address}.{name}")
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

    def _tensors(self, module: Linear) -> dict[str, Tensor]:
        return {name.removeprefix(f"{module.address}."): self.tensor(name) for name in self.names(module)}

    def _check(self) -> None:
        """All tensors of the model are there and no others, packed ones in the place of their weights."""
        containers = {module.address: self._container(module) for module in self.inventory.linears}
        packed = {address: _PARTS[container] for address, container in containers.items() if container != "dense"}
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
        names = (f"{module.address}.{part}" for part in _SUFFIXES)
        return next((_SUFFIXES[name.rpartition(".")[2]] for name in names if name in self.source.tensors), "dense")

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
        for name, shapes in _shapes(container, module, format).items():
            self._check_shape(f"{module.address}.{name}", *shapes, optional=name in _OPTIONAL)
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

    def _format(self, module: Linear, said: quantization.Grid) -> Format:
        try:
            return Format(*said)
        except ValueError:
            bits, group, _ = said
            where = self.path / CONFIG
            raise UserError(f"{where}: {module.address}: {bits} bits in groups of {group} are not read here") from None


def _shapes(container: str, module: Linear, format: Format) -> dict[str, Sequence[tuple[int, ...]]]:
    """Name within the module -> shapes of codes and scales that its format allows, the usual one first."""
    rows, columns = module.out_features, module.in_features
    words, groups = packing.words(columns, format.bits), format.groups(columns)
    if container == "gptq":
        return {
            gptq.CODES: [(words, rows)],
            gptq.SCALES: [(groups, rows)],
            gptq.ZEROS: [(groups, packing.words(rows, format.bits))],
            gptq.INDEX: [(columns,)],
        }
    found: dict[str, Sequence[tuple[int, ...]]] = {
        compressed_tensors.PACKED: [(rows, words), (rows, _padded_words(columns, format.bits))],
        compressed_tensors.SCALE: [(rows, groups)],
        compressed_tensors.SHAPE: [(2,)],
        _COLUMNS: [(columns,)],
    }
    zeros = (packing.words(rows, format.bits), groups)
    return found if format.symmetric else found | {compressed_tensors.ZERO: [zeros]}


def _padded_words(columns: int, bits: int) -> int:
    """Words of a row in which no code lies across two."""
    return -(-columns // (packing.WORD // bits))


def _unpadded(tensors: Mapping[str, Tensor], format: Format, module: Linear) -> dict[str, Tensor]:
    """Words as compressed-tensors writes them from 0.19 on: before, no code lay across two, 10 of 3 bits in one."""
    per = packing.WORD // format.bits
    padded = _padded_words(module.in_features, format.bits)
    words = tensors[compressed_tensors.PACKED]
    if words.shape[1] != padded or padded == packing.words(module.in_features, format.bits):
        return dict(tensors)
    shifts = torch.arange(per, dtype=torch.int64) * format.bits
    codes = ((words.to(torch.int64).unsqueeze(-1) >> shifts) & (2**format.bits - 1)).to(torch.uint8)
    codes = codes.reshape(len(words), -1)[:, : module.in_features]
    return dict(tensors) | {compressed_tensors.PACKED: packing.pack(codes, format.bits)}
