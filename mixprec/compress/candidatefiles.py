"""Candidates on disk: what a method made of each module in each treatment, a file for each block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from mixprec.compress.blockfile import Block, file_of, opened
from mixprec.models.decoder import Decoder, Linear
from mixprec.models.labels import parse_address


class Candidates:
    """Weights by module and candidate, block by block; what is read is the weight that takes the original's place."""

    def __init__(self, folder: Path, names: Sequence[str], digest: str) -> None:
        self.folder, self.names, self.digest = folder, tuple(names), digest

    def files(self, inventory: Decoder, outside: Sequence[Linear] = ()) -> list[Path]:
        """Where the candidates of a model's blocks lie, and those of matrices outside them."""
        keys: list[int | str] = [block.layer for block in inventory.blocks]
        keys += [linear.address for linear in outside]
        return [file_of(self.folder, key) for key in keys]

    def block(self, layer: int, names: Sequence[str] | None = None) -> dict[str, dict[str, Tensor]]:
        """Address -> candidate -> restored weight (out, in) in its stored type, of the block ``layer``, 1-based.

        ``names``: of these candidates only.
        """
        wanted = self.names if names is None else names
        with opened(file_of(self.folder, layer)) as file:
            found = {a: {n: file.weight(a, n) for n in wanted if n in file.formats[a]} for a in file.formats}
        return {address: by_name for address, by_name in found.items() if by_name}

    def weight(self, address: str, candidate: str) -> Tensor:
        """One module's restored weight (out, in) in its stored type."""
        with self._holding(address) as file:
            return file.weight(address, candidate)

    def inputs(self, address: str) -> tuple[Tensor, Tensor]:
        """Means of |x| and of x² of a module's inputs (in,) over the calibration tokens."""
        with self._holding(address) as file:
            return file.inputs(address)

    @contextmanager
    def _holding(self, address: str) -> Iterator[Block]:
        layer, _ = parse_address(address)
        with opened(file_of(self.folder, layer or address)) as file:
            yield file
