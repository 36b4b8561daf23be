"""Whether a GGUF model is whole, and nothing in it goes unread: looked at in its headers, before transformers reads it.

transformers fills missing tensors with random numbers, passes over those that it doesn't know, and over the metadata of
scaled rotary embeddings, with which llama.cpp computes another function.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from transformers import PretrainedConfig

from mixprec.checkpoint.complete import check_complete, expected
from mixprec.checkpoint.gguf import metadata
from mixprec.checkpoint.gguf.names import names_in
from mixprec.errors import UserError


def check_tensors(path: Path, reader: Any, config: PretrainedConfig) -> None:
    """The model that ``reader`` (parts.read) found at ``path`` is that of ``config``, whole.

    Raises UserError naming what is missing, what nobody reads, or the shape that is another.
    """
    architecture = _architecture(reader)
    names = names_in(architecture, expected(config), config.num_hidden_layers)
    found = {
        names.get(tensor.name, tensor.name): tuple(int(size) for size in tensor.shape[::-1])
        for tensor in reader.tensors
        if tensor.name != metadata.ROPE_TENSOR
    }
    check_complete(path, found, config)


def check_rope(path: Path, reader: Any, config: PretrainedConfig) -> None:
    """Raises UserError where llama.cpp would scale rotary frequencies in another way than ``config`` says."""
    remedy = "which transformers does not read from GGUF files; give the original checkpoint"
    factors = next((t.data for t in reader.tensors if t.name == metadata.ROPE_TENSOR), None)
    wanted = metadata.rope_factors(config)
    if factors is not None:
        plain = np.ones_like(factors) if wanted is None else wanted.numpy()
        if factors.shape != plain.shape or not np.allclose(factors, plain, rtol=1e-3):
            raise UserError(f"{path}: {metadata.ROPE_TENSOR} scales the rotary embedding, {remedy}")
    elif wanted is not None:
        raise UserError(f"{path}: {metadata.ROPE_TENSOR} is missing, config.json asks for scaled rotary embeddings")
    key = f"{_architecture(reader)}.rope.scaling.type"
    said = reader.get_field(key)
    kind = "none" if said is None else str(said.contents())
    if kind != "none" and metadata.rope_type(config) != kind:
        raise UserError(f"{path}: the rotary embedding is scaled ({key}: {kind}), {remedy}")


def _architecture(reader: Any) -> str:
    return str(reader.get_field("general.architecture").contents())
