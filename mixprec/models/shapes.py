"""What is known of a model without its files and without transformers: sizes, by the keys of config.json."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import resources
from typing import Any, Final

import yaml

from mixprec.models import locate

#: Of the bundled model, whose file is pinned.
_BUNDLED: Final = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "dtype": "float16",
}


@functools.cache
def known_shapes() -> dict[str, dict[str, Any]]:
    """Configurations of well-known models by hub id (sources in the file)."""
    text = resources.files("mixprec.models").joinpath("known_shapes.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def shape_of(model_id: str) -> Mapping[str, Any] | None:
    """What config.json says of a well-known model, or of the bundled one; None for those that transformers describes.

    Raises UserError where the bundled model isn't installed, or not the pinned file.
    """
    if model_id == locate.BUNDLED:
        locate.bundled()
        return _BUNDLED
    return known_shapes().get(model_id)
