"""Sizes of a decoder by arithmetic on a configuration's keys; those that no model has are refused."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from mixprec.core.errors import UserError
from mixprec.models.arch import FAMILIES
from mixprec.models.arch.family import Sizes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SIZES: Final = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
#: Where they are null, they follow from others.
_OPTIONAL: Final = ("num_key_value_heads", "head_dim", "max_position_embeddings")
#: Keys of a configuration -> the largest number that is taken for a model's: more would be built for hours.
_MOST: Final = {
    "num_hidden_layers": 1_000,
    **dict.fromkeys((*_SIZES, "num_key_value_heads", "head_dim"), 2**24),
    "max_position_embeddings": 2**40,
}


def check_architecture(config: PretrainedConfig | Mapping[str, Any], where: str) -> None:
    """Refuse what is no decoder of text.

    Raises UserError for architectures that transformers builds no decoder of, and for sizes that no model has;
    ``where`` says which model it was.
    """
    read = reader(config, where)
    described = read("model_type") in tuple(FAMILIES)  # a file may hold what can't be a key
    for key, most in _MOST.items():
        value = read(key)
        if value is None and (key in _OPTIONAL or not described):
            continue
        if not (isinstance(value, int) and 1 <= value <= most):
            raise UserError(f"{where}: config.json: {key}: {reprlib.repr(value)} is no number from 1 to {most:,}")
    if not described:
        return
    hidden, heads, shared = (read(key) for key in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    if read("head_dim") is None and hidden < heads:
        raise UserError(f"{where}: config.json: hidden_size: {hidden} is less than num_attention_heads, {heads}")
    if heads % (shared or heads):
        raise UserError(
            f"{where}: config.json: num_key_value_heads: {shared} doesn't divide num_attention_heads, {heads}"
        )


def reader(config: PretrainedConfig | Mapping[str, Any], where: str = "model") -> Callable[[str], Any]:
    """A key's value in ``config``, an object of transformers or what config.json holds; where it has none of its own,
    the family's, or that of the text decoder inside.

    Raises UserError for what transformers builds no decoder of; ``where`` names it.
    """
    values: Any = config if isinstance(config, Mapping) else vars(config) | {"model_type": config.model_type}
    name = values.get("model_type")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is not None:
        return lambda key: values.get(key, family.defaults.get(key))
    from mixprec.models.discover.building import as_config  # brings torch and transformers

    made = as_config(config, where)
    text = made.get_text_config(decoder=True)
    return lambda key: value_of(made, key, value_of(text, key))


def value_of(config: PretrainedConfig, key: str, otherwise: Any = None) -> Any:
    """What an object of transformers says; of keys whose values differ from layer to layer the largest."""
    try:
        return getattr(config, key, otherwise)
    except RuntimeError:  # transformers' own, for a key of which there is no one value
        values = [getattr(layer, key, None) for layer in config.per_layer_config]
        return max((value for value in values if value is not None), default=otherwise)


def sizes_of(config: PretrainedConfig | Mapping[str, Any]) -> Sizes:
    """The widths of a decoder that ``check_architecture`` passes."""
    read = reader(config)
    hidden, heads = read("hidden_size"), read("num_attention_heads")
    head = read("head_dim") or hidden // heads
    shared = read("num_key_value_heads") or heads
    return Sizes(hidden, read("intermediate_size"), heads * head, shared * head, head, read("vocab_size"))


def context_of(config: PretrainedConfig | Mapping[str, Any]) -> int:
    """Tokens that a model was trained to see at once; where nothing limits them, more than anybody has."""
    return int(reader(config)("max_position_embeddings") or 1 << 20)
