"""A block's file: what was made of its linears, as codes and grids, and other tensors beside them.

Names of tensors are address, candidate, and what of the candidate's format a tensor is (numerics.storage); other
tensors have their own names, and means of |x| and x² of a module's inputs stand under its address. Metadata say what
each module's weight is and what its candidates are in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from torch import Tensor

from mixprec.compress.solving import Solved
from mixprec.core import artifacts
from mixprec.models.decoder import Linear
from mixprec.models.tensors import COMPUTABLE
from mixprec.numerics import storage
from mixprec.numerics.formats import AnyFormat, parse_format
from mixprec.numerics.statistics import InputStatistics
from mixprec.numerics.storage import AnyQuantized

#: A part of stamps: files of another layout are made again.
LAYOUT: Final = "codes"
#: The candidate where there is but one: what a plan made of a module.
MADE: Final = "made"
_SEPARATOR: Final = "|"
_METADATA: Final = ("weights", "formats", "reports")
_MEAN_ABS, _MEAN_SQUARE = "mean_abs", "mean_square"


class Made(NamedTuple):
    """What a weight (out, in) became: ``quantized`` in ``format``, and the values that it stands for in its stored
    type."""

    quantized: AnyQuantized
    format: AnyFormat
    restored: Tensor


class Block:
    """An open file of a block. ``formats``: address -> candidate -> the format that its codes are in. ``reports``: what
    was said of its modules."""

    def __init__(self, file: Any, metadata: Mapping[str, Any]) -> None:
        self._file, self._weights = file, metadata["weights"]
        self.formats: dict[str, dict[str, str]] = metadata["formats"]
        self.reports: dict[str, dict[str, Any]] = metadata.get("reports", {})
        self._parts: dict[str, list[str]] = {}
        for name in file.keys():  # noqa: SIM118 (no mapping)
            owner, _, part = name.rpartition(_SEPARATOR)
            self._parts.setdefault(owner, []).append(part)

    def tensor(self, owner: str, part: str) -> Tensor:
        """A tensor of a candidate, or of a module."""
        found: Tensor = self._file.get_tensor(_SEPARATOR.join((owner, part)))
        return found

    def inputs(self, address: str) -> tuple[Tensor, Tensor]:
        """Means of |x| and of x² of a module's inputs (in,)."""
        return self.tensor(address, _MEAN_ABS), self.tensor(address, _MEAN_SQUARE)

    def weight(self, address: str, candidate: str = MADE) -> Tensor:
        """One module's restored weight (out, in) in its stored type."""
        dtype, (rows, columns) = self._weights[address]
        return storage.restored(
            self._stored(address, candidate), self._format(address, candidate), (rows, columns), COMPUTABLE[dtype]
        )

    def made(self, address: str) -> Made:
        """What was made of a module, and its weight."""
        _, (rows, columns) = self._weights[address]
        format = self._format(address, MADE)
        quantized = storage.from_tensors(self._stored(address, MADE), format, (rows, columns))
        return Made(quantized, format, self.weight(address))

    @property
    def modules(self) -> dict[str, Made]:
        """Address -> what was made of the module."""
        return {address: self.made(address) for address in self.formats}

    @property
    def other(self) -> dict[str, Tensor]:
        """Tensors beside those of modules, by their names."""
        return {name: self._file.get_tensor(name) for name in self._parts.get("", ())}

    def _stored(self, address: str, candidate: str) -> dict[str, Tensor]:
        owner = _SEPARATOR.join((address, candidate))
        return {part: self.tensor(owner, part) for part in self._parts[owner]}

    def _format(self, address: str, candidate: str) -> AnyFormat:
        return parse_format(self.formats[address][candidate])


def file_of(folder: Path, key: int | str) -> Path:
    """The file of a block by its layer, 1-based, or of a matrix outside the blocks by its address."""
    return folder / (f"{key:05d}.safetensors" if isinstance(key, int) else f"{key}.safetensors")


@contextmanager
def opened(path: Path) -> Iterator[Block]:
    """A block's file. Raises UserError as artifacts.open_tensors does."""
    with artifacts.open_tensors(path) as file:
        metadata = {key: artifacts.parse_json(text, path) for key, text in file.metadata().items() if key in _METADATA}
        yield Block(file, metadata)


class BlockFile:
    """What a block's file will hold, module by module; ``save`` writes it."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._formats: dict[str, dict[str, str]] = {}
        self._weights: dict[str, list[Any]] = {}

    def add_module(self, module: Linear, dtype: str, statistics: InputStatistics | None) -> None:
        """A module, the type of its weight in the checkpoint as safetensors names it, and its inputs' statistics."""
        self._weights[module.address] = [dtype, [module.out_features, module.in_features]]
        self._formats[module.address] = {}
        if statistics is not None:
            self._put(module.address, {_MEAN_ABS: statistics.mean_abs, _MEAN_SQUARE: statistics.hessian.diagonal()})

    def add(self, address: str, candidate: str, solved: Solved, format: AnyFormat) -> None:
        """What the ``candidate`` of a module is, in ``format``."""
        self._formats[address][candidate] = str(format)
        self._put(f"{address}{_SEPARATOR}{candidate}", storage.stored(solved.quantized, format, solved.scale))

    def put(self, name: str, tensor: Tensor) -> None:
        """Another tensor."""
        # Rows of what was solved together lie in one piece of memory: the file takes each on its own.
        self._tensors[name] = tensor.to("cpu", copy=True)

    def save(self, path: Path, stamp: str, reports: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Write the file. ``reports``: address -> what is said of the module."""
        said = {} if reports is None else {"reports": reports}
        metadata = {"stamp": stamp, "formats": self._formats, "weights": self._weights, **said}
        artifacts.save_tensors(path, self._tensors, metadata)

    def _put(self, owner: str, tensors: Mapping[str, Tensor]) -> None:
        for part, tensor in tensors.items():
            self.put(_SEPARATOR.join((owner, part)), tensor)
