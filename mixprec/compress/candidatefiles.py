"""Candidates on disk: what a method made of each module in each treatment, as codes and grids, a file for each block.

Names of tensors are address, candidate, and what of the candidate's format a tensor is (numerics.storage); means of |x|
and x² of a module's inputs lie beside the candidates. Metadata say what each module's weight is and what its candidates
are in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from mixprec.compress.solving import Solved
from mixprec.core import artifacts
from mixprec.models.decoder import Decoder, Linear
from mixprec.models.labels import parse_address
from mixprec.models.tensors import COMPUTABLE
from mixprec.numerics import storage
from mixprec.numerics.formats import AnyFormat, parse_format
from mixprec.numerics.statistics import InputStatistics

#: A part of stamps: files of another layout are made again.
LAYOUT = "codes"
_SEPARATOR = "|"
_MEAN_ABS, _MEAN_SQUARE = "mean_abs", "mean_square"


class Candidates:
    """Weights by module and candidate, block by block; what is read is the weight that takes the original's place."""

    def __init__(self, folder: Path, names: Sequence[str], digest: str) -> None:
        self.folder, self.names, self.digest = folder, tuple(names), digest

    def files(self, inventory: Decoder) -> list[Path]:
        """Where the candidates of a model's blocks lie."""
        return [file_of(self.folder, block.layer) for block in inventory.blocks]

    def block(self, layer: int, names: Sequence[str] | None = None) -> dict[str, dict[str, Tensor]]:
        """Address -> candidate -> restored weight (out, in) in its stored type, of the block ``layer``, 1-based.

        ``names``: of these candidates only.
        """
        wanted = self.names if names is None else names
        with _opened(file_of(self.folder, layer)) as file:
            found = {a: {n: file.weight(a, n) for n in wanted if n in file.formats[a]} for a in file.formats}
        return {address: by_name for address, by_name in found.items() if by_name}

    def weight(self, address: str, candidate: str) -> Tensor:
        """One module's restored weight (out, in) in its stored type."""
        with self._holding(address) as file:
            return file.weight(address, candidate)

    def inputs(self, address: str) -> tuple[Tensor, Tensor]:
        """Means of |x| and of x² of a module's inputs (in,) over the calibration tokens."""
        with self._holding(address) as file:
            return file.tensor(address, _MEAN_ABS), file.tensor(address, _MEAN_SQUARE)

    @contextmanager
    def _holding(self, address: str) -> Iterator[_Block]:
        layer, _ = parse_address(address)
        assert layer is not None
        with _opened(file_of(self.folder, layer)) as file:
            yield file


class _Block:
    """An open file of a block. ``formats``: address -> candidate -> the format that its codes are in."""

    def __init__(self, file: Any, metadata: Mapping[str, Any]) -> None:
        self._file, self._weights = file, metadata["weights"]
        self.formats: dict[str, dict[str, str]] = metadata["formats"]
        self._parts: dict[str, list[str]] = {}
        for name in file.keys():  # noqa: SIM118 (no mapping)
            owner, _, part = name.rpartition(_SEPARATOR)
            self._parts.setdefault(owner, []).append(part)

    def tensor(self, owner: str, part: str) -> Tensor:
        """A tensor of a candidate, or of a module."""
        found: Tensor = self._file.get_tensor(_SEPARATOR.join((owner, part)))
        return found

    def weight(self, address: str, candidate: str) -> Tensor:
        """As Candidates.weight."""
        owner, (dtype, (rows, columns)) = _SEPARATOR.join((address, candidate)), self._weights[address]
        tensors = {part: self.tensor(owner, part) for part in self._parts[owner]}
        format = parse_format(self.formats[address][candidate])
        return storage.restored(tensors, format, (rows, columns), COMPUTABLE[dtype])


@contextmanager
def _opened(path: Path) -> Iterator[_Block]:
    with artifacts.open_tensors(path) as file:
        metadata = {key: artifacts.parse_json(file.metadata()[key], path) for key in ("weights", "formats")}
        yield _Block(file, metadata)


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

    def save(self, path: Path, stamp: str) -> None:
        """Write the file."""
        metadata = {"stamp": stamp, "formats": self._formats, "weights": self._weights}
        artifacts.save_tensors(path, self._tensors, metadata)

    def _put(self, owner: str, tensors: Mapping[str, Tensor]) -> None:
        for part, tensor in tensors.items():
            # Rows of what was solved together lie in one piece of memory: the file takes each on its own.
            self._tensors[_SEPARATOR.join((owner, part))] = tensor.to("cpu", copy=True)


def file_of(folder: Path, layer: int) -> Path:
    """The file of the block ``layer``, 1-based."""
    return folder / f"{layer:05d}.safetensors"
