"""Where the tensors of a model lie in a GGUF file: whole, as one of a layer's stacked experts, or in two halves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mixprec.core.errors import UserError
from mixprec.models.gguf.latent import whole_name
from mixprec.models.gguf.names import is_expert


class Piece(NamedTuple):
    """A tensor of the model: the file's that hold it, two where it is in halves (models/gguf/latent.py), and its shape.
    ``expert``: its number in a stack, ``of`` so many."""

    raw: tuple[Any, ...]
    shape: tuple[int, ...]
    expert: int | None = None
    of: int = 1

    @property
    def kind(self) -> str:
        """Its type in lower case; of two halves that of the values, whose rows are the plan's."""
        return str(self.raw[-1].tensor_type.name.lower())

    @property
    def bytes(self) -> int:
        """Its bytes in the file."""
        return sum(int(raw.n_bytes) for raw in self.raw) // self.of


def pieces(path: Path, tensors: Iterable[Any], names: Mapping[str, str]) -> dict[str, Piece]:
    """transformers' name -> where it is, in the order of ``names``: transformers' name -> name in GGUF. What has no
    name there stands under its own at the end.

    Raises UserError for a stack of another number of experts than the model has.
    """
    raw: dict[str, list[Any]] = {}
    for tensor in tensors:
        raw.setdefault(whole_name(tensor.name), []).append(tensor)
    owners: dict[str, list[str]] = {}
    for name, known in names.items():
        if known in raw:
            owners.setdefault(known, []).append(name)
    found: dict[str, Piece] = {}
    for known, holds in owners.items():
        held = sorted(raw[known], key=lambda tensor: str(tensor.name))  # keys, values
        shape = _shape(held[0])
        if is_expert(holds[0]):
            if shape[:1] != (len(holds),):
                raise UserError(f"{path}: {known} has the shape {shape}, of {len(holds)} experts by the configuration")
            for number, name in enumerate(holds):
                found[name] = Piece(tuple(held), shape[1:], number, len(holds))
        elif len(held) > 1:
            (_, rank, nope), (heads, width, _) = (_shape(each) for each in held)
            found[holds[0]] = Piece(tuple(held), (heads * (nope + width), rank))
        else:
            # llama.cpp keeps the matrix of one row that weighs a shared expert as a vector.
            row = known.endswith("_shexp.weight") and len(shape) == 1
            found[holds[0]] = Piece(tuple(held), (1, *shape) if row else shape)
    strangers = {
        str(each.name): Piece((each,), _shape(each)) for known in raw.keys() - owners.keys() for each in raw[known]
    }
    return {name: found[name] for name in names if name in found} | strangers


def _shape(raw: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in raw.shape[::-1])
