"""What is stored in a checkpoint, whoever wrote it: each linear module's format and bytes, by headers and config.json.

No tensor is read: ``inspect`` needs no torch. Weights are read by checkpoint/reader.py, files of llama.cpp by
checkpoint/gguf/checkpoint.py.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from mixprec.checkpoint import quantization
from mixprec.checkpoint.packings import PACKINGS
from mixprec.checkpoint.patterns import Matcher
from mixprec.checkpoint.quantization import CONFIG
from mixprec.checkpoint.said import Grid, Said
from mixprec.core import artifacts, headers
from mixprec.core.errors import UserError
from mixprec.models import configfile, fp8
from mixprec.models.complete import check_complete, is_computed
from mixprec.models.decoder import Decoder, Linear
from mixprec.models.maps import decoder_of, names_of
from mixprec.models.source import FLOATS, Source, open_source
from mixprec.numerics.formats import KEEP, AnyFormat, GridFormat

#: Scales of what runtimes quantize while they run.
_RUN_TIME: Final = frozenset(
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


class Stored:
    """A folder of safetensors files with its modules' layouts.

    Raises UserError, here and below, for broken files and for what no reader here knows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._patterns = Matcher(path / CONFIG)
        described = configfile.read(path)
        self.config: dict[str, Any] = artifacts.read_object(path / CONFIG, finite=False)
        block = fp8.block_of(self.config)
        self.packing: Said | None = quantization.read(path, self.config) if block is None else None
        self.inventory: Decoder = decoder_of(described)
        self.source: Source = open_source(path).renamed(names_of(described)).widened(block)
        self._check()

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not read here: what runtimes quantize besides, and buffers that models compute themselves."""
        computed = [name for name in self.source.tensors if is_computed(name)]
        said = (
            [f"{len(computed)} tensors are computed from {CONFIG}, not read, such as {computed[0]}"] if computed else []
        )
        if self.widened:
            said.append("weights in 8-bit floats are read as bfloat16, times the scales of their blocks")
        return (*self._unsimulated, *said)

    @property
    def widened(self) -> bool:
        """Whether weights are read in another type than they are stored in."""
        return any(info.scale is not None for info in self.source.tensors.values())

    @property
    def _unsimulated(self) -> tuple[str, ...]:
        return () if self.packing is None else self.packing.notes

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """Address -> layout, in the model's order."""
        return {module.address: self._layout(module) for module in self.inventory.matrices}

    @property
    def container(self) -> str:
        """The checkpoint's format: that of its packed modules, or dense."""
        return next((found.container for found in self.layouts.values() if found.container != "dense"), "dense")

    def names(self, module: Linear) -> list[str]:
        """Full names of a module's tensors but its bias."""
        return [name for name in self._names.get(module.address, ()) if not name.endswith(".bias")]

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """Module -> full names of its tensors."""
        found: dict[str, list[str]] = {}
        for name in self.source.tensors:
            found.setdefault(name.rpartition(".")[0], []).append(name)
        return found

    def _check(self) -> None:
        """All tensors of the model are there and no others, packed ones in the place of their weights."""
        containers = {module.address: self._container(module) for module in self.inventory.matrices}
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
            check_complete(self.path, found, self.inventory)
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
            return self._is_zero(name)
        return bool(self._unsimulated) and part in _RUN_TIME

    def _is_zero(self, name: str) -> bool:
        info = self.source.tensors[name]
        values = bytearray(headers.stored(self.path / info.shard, info.name or name))
        if info.dtype in FLOATS:
            width = headers.BITS[info.dtype] // 8
            values[width - 1 :: width] = bytes(byte & 0x7F for byte in values[width - 1 :: width])  # -0 is 0
        return not any(values)

    def _container(self, module: Linear) -> str:
        """The format of a module's tensors; that of one without any is dense."""
        found = self.source.tensors
        # AWQ's codes have the name of GPTQ's: config.json says which they are.
        said = self.packing.quant_method if self.packing else ""
        likely = sorted(PACKINGS, key=lambda name: name != said)
        marked = (name for name in likely if f"{module.address}.{PACKINGS[name].mark}" in found)
        return next(marked, "dense")

    def _layout(self, module: Linear) -> Layout:
        container = self._container(module)
        size = sum(self.source.tensors[name].bytes for name in self.names(module))
        said = self.packing.grid(module, self._patterns) if self.packing else None
        where = f"{self.path / CONFIG}: {next(iter(quantization.places(self.config)), '')}"
        if container == "dense":
            info = self.source.tensors[module.weight_name]
            if info.dtype not in FLOATS and module.layer:  # what is outside may be of any type while it stays as it is
                raise UserError(
                    f"{self.path / info.shard}: {module.weight_name} is stored as {info.dtype}; weights must be "
                    f"{', '.join(FLOATS)} (is this checkpoint quantized already?)"
                )
            if said is not None and self.packing is not None and not self.packing.may_be_dense(module):
                raise UserError(
                    f"{where} means {module.address}, whose weight is not packed: "
                    "runtimes would find nothing to load; mend it, or make the checkpoint again"
                )
            return Layout(container, KEEP, size, info.dtype.lower())
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

    def _format(self, module: Linear, said: Grid) -> GridFormat:
        try:
            return said.format
        except ValueError:
            bits, group, _ = said
            where = self.path / CONFIG
            raise UserError(f"{where}: {module.address}: {bits} bits in groups of {group} are not read here") from None
