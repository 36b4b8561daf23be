"""Checkpoints read back, whoever wrote them: each linear module's format and weight, without any runtime.

Dense, compressed-tensors (pack-quantized, dense or padded words) and GPTQ (both layouts, reordered columns too); files
of llama.cpp by checkpoint/gguf/checkpoint.py.
Used by inspect, diff and convert, and to evaluate packed checkpoints.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from mixprec import artifacts, models, modules
from mixprec.checkpoint import compressed_tensors, gptq, quantized
from mixprec.checkpoint.patterns import Matcher
from mixprec.checkpoint.shards import CONFIG
from mixprec.checkpoint.source import FLOATS, Source, open_source
from mixprec.errors import UserError
from mixprec.modules import Inventory, LinearModule
from mixprec.numerics import packing
from mixprec.numerics.formats import KEEP, WHOLE_ROW, AnyFormat, Format, Keep
from mixprec.numerics.groupwise import Quantized, dequantize

#: Classes that a linear module is of, in the order in which compressed-tensors tries targets.
_CLASSES = ("Linear", "Module")
_SUFFIXES = {compressed_tensors.PACKED: "compressed-tensors", gptq.CODES: "gptq", "weight": "dense"}


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
        self.source: Source = open_source(path)
        self.config: dict[str, Any] = artifacts.read_object(path / CONFIG, finite=False)
        self.quantization: dict[str, Any] = quantized.check(self.config.get("quantization_config"), path / CONFIG)
        self._patterns = Matcher(path / CONFIG)
        self.shapes: PretrainedConfig = models.load_config(str(path))
        self.inventory: Inventory = modules.inventory(self.shapes)

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """Address -> layout, in the model's order."""
        return {module.address: self._layout(module) for module in self.inventory.linears}

    @property
    def container(self) -> str:
        """The checkpoint's format: that of its packed modules, or dense."""
        return next((found.container for found in self.layouts.values() if found.container != "dense"), "dense")

    def weight(self, module: LinearModule, dtype: torch.dtype = torch.float32) -> Tensor:
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

    def quantized(self, module: LinearModule) -> Quantized:
        """Codes and grid of a packed module, columns where they are."""
        layout = self.layouts[module.address]
        assert isinstance(layout.format, Format)
        tensors = self._tensors(module)
        try:
            if layout.container == "gptq":
                tensors.setdefault(gptq.INDEX, torch.zeros(module.in_features, dtype=torch.int32))
                shifted = self.quantization.get("checkpoint_format", "gptq") != "gptq_v2"
                return gptq.unpack_codes(tensors, layout.format, shifted=shifted)
            return compressed_tensors.unpack_codes(_unpadded(tensors, layout.format, module), layout.format)
        except (KeyError, RuntimeError) as problem:
            raise UserError(
                f"{self.path}: {module.address}: can't be unpacked as {layout.format} ({problem})"
            ) from None

    def order(self, module: LinearModule) -> Tensor | None:
        """Columns sorted by their groups, where they don't lie so already (GPTQ's act order); else None."""
        name = {"gptq": gptq.INDEX, "compressed-tensors": "weight_g_idx"}.get(self.layouts[module.address].container)
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

    def names(self, module: LinearModule) -> list[str]:
        """Full names of a module's tensors but its bias."""
        prefix = f"{module.address}."
        return [name for name in self.source.tensors if name.startswith(prefix) and name != f"{prefix}bias"]

    def _tensors(self, module: LinearModule) -> dict[str, Tensor]:
        return {name.removeprefix(f"{module.address}."): self.tensor(name) for name in self.names(module)}

    def _layout(self, module: LinearModule) -> Layout:
        names = self.names(module)
        local = {name.removeprefix(f"{module.address}.") for name in names}
        container = next((found for suffix, found in _SUFFIXES.items() if suffix in local), None)
        if container is None:
            found = ", ".join(sorted(local)) or "none"
            raise UserError(
                f"{self.path}: {module.address}: no tensors that are read here, found {found}; dense weights, "
                "compressed-tensors (pack-quantized) and GPTQ are"
            )
        size = sum(self.source.tensors[name].bytes for name in names)
        if container == "dense":
            info = self.source.tensors[module.weight_name]
            if info.dtype not in FLOATS:
                raise UserError(f"{self.path / info.shard}: {module.weight_name} is stored as {info.dtype}, no float")
            self._check_shape(module.weight_name, (module.out_features, module.in_features))
            return Layout(container, KEEP, size, info.dtype.lower())
        said = self._gptq(module) if container == "gptq" else self._group(module)
        for name, shapes in _shapes(container, module, said).items():
            self._check_shape(f"{module.address}.{name}", *shapes)
        return Layout(container, said, size)

    def _check_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        info = self.source.tensors.get(name)  # what is missing is told by whoever needs it
        if info and info.shape not in shapes:
            found, wanted = (" x ".join(map(str, shape)) for shape in (info.shape, shapes[0]))
            where = self.path / info.shard
            raise UserError(f"{where}: {name} is {found}, {CONFIG} asks for {wanted}: they are not of one checkpoint")

    def _gptq(self, module: LinearModule) -> Format:
        said = dict(self.quantization)
        for pattern, overrides in (self.quantization.get("dynamic") or {}).items():
            if not pattern.startswith("-:") and self._patterns.match(pattern.removeprefix("+:"), module.address):
                said |= overrides
                break
        return self._format(module, said.get("bits"), said.get("group_size"), said.get("sym"))

    def _group(self, module: LinearModule) -> Format:
        groups = (self.quantization.get("config_groups") or {}).values()
        by_target = {target: group for group in groups for target in group.get("targets", ())}
        target = self._target(by_target, module.address)
        if target is None:
            raise UserError(f"{self.path / CONFIG}: config_groups: none matches {module.address}, which is packed")
        weights = by_target[target].get("weights") or {}
        size = weights.get("group_size") if weights.get("strategy") == "group" else WHOLE_ROW
        return self._format(module, weights.get("num_bits"), size, weights.get("symmetric"))

    def _target(self, targets: Collection[str], address: str) -> str | None:
        """Of those that match the one that compressed-tensors takes (match_targets): a name before a pattern before a
        class."""
        if address in targets:
            return address
        for target in sorted(targets):
            if target.startswith("re:") and self._patterns.match(target.removeprefix("re:"), address):
                return target
        return next((name for name in _CLASSES if name in targets), None)

    def _format(self, module: LinearModule, bits: object, group: object, symmetric: object) -> Format:
        try:
            assert isinstance(bits, int)
            assert isinstance(group, int)
            return Format(bits, group, symmetric is not False)  # both formats' default
        except (AssertionError, ValueError):
            where = self.path / CONFIG
            raise UserError(f"{where}: {module.address}: {bits} bits in groups of {group} are not read here") from None


def _shapes(container: str, module: LinearModule, format: Format) -> dict[str, Sequence[tuple[int, int]]]:
    """Name within the module -> shapes of codes and scales that its format allows, the usual one first."""
    rows, columns = module.out_features, module.in_features
    words, groups = packing.words(columns, format.bits), format.groups(columns)
    if container == "gptq":
        return {gptq.CODES: [(words, rows)], gptq.SCALES: [(groups, rows)]}
    packed = [(rows, words), (rows, _padded_words(columns, format.bits))]
    return {compressed_tensors.PACKED: packed, compressed_tensors.SCALE: [(rows, groups)]}


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder, or a GGUF file.

    Raises UserError where it isn't one that is read here.
    """
    # Built on this module.
    from mixprec.checkpoint.gguf.checkpoint import GgufCheckpoint
    from mixprec.checkpoint.gguf.parts import gguf_in

    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    file = gguf_in(path)
    return Checkpoint(path) if file is None else GgufCheckpoint(path, file)


def _padded_words(columns: int, bits: int) -> int:
    """Words of a row in which no code lies across two."""
    return -(-columns // (packing.WORD // bits))


def _unpadded(tensors: Mapping[str, Tensor], format: Format, module: LinearModule) -> dict[str, Tensor]:
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
