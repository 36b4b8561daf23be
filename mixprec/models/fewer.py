"""The configuration of a model that has fewer routed experts, and the map of that model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Final

from transformers import PretrainedConfig

from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder
from mixprec.models.maps import decoder_of

#: Parts of keys that count other things than a layer's routed experts.
_OTHERS: Final = ("per_tok", "shared", "top", "group", "size", "layer", "period", "offset", "interval")


def with_experts(config: PretrainedConfig, decoder: Decoder, count: int) -> tuple[PretrainedConfig, Decoder]:
    """``config``, whose map is ``decoder``, with ``count`` routed experts in each layer that has some, and its map.

    Raises UserError where the model that transformers builds of it isn't the same but for these.
    """
    made = copy.deepcopy(config)
    text = made.get_text_config(decoder=True)
    for key in _keys(text, decoder):
        setattr(text, key, count)
    found = decoder_of(made)
    counts = {len(numbers) for numbers in found.experts.values()}
    if counts != {count} or found.experts.keys() != decoder.experts.keys():
        raise UserError(
            f"drop: {config.model_type}: no key of its configuration is known that says how many routed experts a "
            "layer has; keep the experts of this model"
        )
    return made, found


def _keys(text: PretrainedConfig, decoder: Decoder) -> list[str]:
    """Keys that say how many routed experts there are."""
    count = len(next(iter(decoder.experts.values())))
    return [key for key, value in vars(text).items() if _counts_experts(key) and value == count]


def _counts_experts(key: str) -> bool:
    return "expert" in key and not any(word in key for word in _OTHERS)


def described(said: Mapping[str, Any], config: PretrainedConfig, decoder: Decoder, count: int) -> dict[str, Any]:
    """What config.json says, ``said``, with ``count`` routed experts; ``config``, ``decoder``: of what it says now."""
    text = config.get_text_config(decoder=True)
    names = {*_keys(text, decoder)}
    names |= {alias for alias, name in text.attribute_map.items() if name in names}
    made = copy.deepcopy(dict(said))
    inside = next(_places(made, text.model_type), made)
    there = names & inside.keys() or set(_keys(text, decoder))
    inside |= dict.fromkeys(there, count)
    return made


def _places(said: dict[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    """Where config.json tells of the text decoder."""
    if said.get("model_type") == kind:
        yield said
    for value in said.values():
        if isinstance(value, dict):
            yield from _places(value, kind)
