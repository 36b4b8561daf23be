"""Maps of decoders that are made for a test: Llama's names with any sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mixprec.models.decoder import Block, Decoder, Group, Linear
from mixprec.models.maps import decoder_of

_LLAMA = decoder_of({"model_type": "llama", "num_hidden_layers": 80})


def linear(layer: int, kind: str, rows: int = 8, columns: int = 8) -> Linear:
    """A linear module of ``layer``, 1-based."""
    found = next(each for each in _LLAMA.blocks[layer - 1].linears if each.kind == kind)
    return replace(found, out_features=rows, in_features=columns)


def address(layer: int, kind: str) -> str:
    """Its full name."""
    return linear(layer, kind).address


def decoder(*linears: Linear, other: Mapping[str, int] | None = None) -> Decoder:
    """The map of a model that has these linears only."""
    groups = [
        Group(found)
        for shared in _LLAMA.groups
        if (found := tuple(each for each in linears if each.address in {other.address for other in shared}))
    ]
    layers = dict.fromkeys(each.layer for each in linears)
    blocks = [
        Block(layer, _LLAMA.blocks[layer - 1].path, tuple(group for group in groups if group[0].layer == layer))
        for layer in layers
    ]
    shapes: dict[str, tuple[int, ...]] = {each.weight_name: (each.out_features, each.in_features) for each in linears}
    shapes |= {name: (size,) for name, size in (other or {}).items()}
    return replace(_LLAMA, blocks=tuple(blocks), shapes=shapes)
