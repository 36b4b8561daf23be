"""What a packing is, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixprec.checkpoint.said import Said
from mixprec.core.headers import BITS, Entry
from mixprec.models.decoder import Linear
from mixprec.numerics.formats import Format


@dataclass(frozen=True)
class Packing:
    """How packed modules lie in safetensors files, whoever wrote them; tensors by their names within the module.

    ``mark``: the tensor that every packed module has and no other one. ``parts``: all that there may be. ``said``: what
    config.json says of them. ``shapes``: (module, format) -> the shapes that a tensor may have, the usual one first.
    ``tensors``: (module, format, the type of the source's weight as safetensors names it) -> what is written here.
    ``columns``: the tensor that says which group each column is in, where there may be one. ``kinds``: of formats that
    it holds. ``places``: keys of config.json that say it; all of them where it is written.
    """

    mark: str
    parts: frozenset[str]
    said: type[Said]
    shapes: Callable[[Linear, Any], Mapping[str, Sequence[tuple[int, ...]]]]
    tensors: Callable[[Linear, Any, str], Mapping[str, Entry]]
    columns: str | None = None
    kinds: tuple[type, ...] = (Format,)
    places: tuple[str, ...] = ("quantization_config",)


def scale_type(weights: str) -> str:
    """The type of the scales of ``weights`` of a type: groupwise.scale_dtype_of by names."""
    return weights if BITS[weights] == 16 else "F16"
