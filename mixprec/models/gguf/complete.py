"""Whether a GGUF model is whole, and nothing in it goes unread: looked at in its headers, before transformers reads it.

transformers fills missing tensors with random numbers, and passes over those that it doesn't know and over part of the
metadata, with which llama.cpp computes another function.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, PretrainedConfig

from mixprec.core.errors import UserError
from mixprec.models.complete import check_complete
from mixprec.models.decoder import decoder_of
from mixprec.models.gguf import metadata, parts
from mixprec.models.gguf.names import names_in
from mixprec.models.sizes import check_architecture


def config_in(path: Path, reader: Any) -> PretrainedConfig:
    """The configuration of the GGUF model at ``path``, which ``reader`` (parts.read) reads; its sizes are not checked.

    Raises UserError where its architecture is not supported.
    """
    config = AutoConfig.from_pretrained(path.parent, gguf_file=parts.files_of(path)[0].name)
    check_architecture(config, str(path))
    metadata.complete(config, reader)
    return config


def check_tensors(path: Path, reader: Any, config: PretrainedConfig) -> None:
    """The model that ``reader`` (parts.read) found at ``path`` is that of ``config``, whole.

    Raises UserError naming what is missing, what nobody reads, or the shape that is another.
    """
    architecture = _architecture(reader)
    decoder = decoder_of(config)
    names = names_in(architecture, decoder.shapes, decoder.layers)
    found = {
        names.get(tensor.name, tensor.name): tuple(int(size) for size in tensor.shape[::-1])
        for tensor in reader.tensors
        if tensor.name != metadata.ROPE_TENSOR
    }
    check_complete(path, found, decoder)


def check_rope(path: Path, reader: Any, config: PretrainedConfig) -> None:
    """Raises UserError where llama.cpp would scale rotary frequencies in another way than ``config`` says."""
    factors, wanted = metadata.rope_tensor(reader), metadata.rope_factors(config)
    if factors is not None:
        plain = np.ones_like(factors) if wanted is None else wanted.numpy()
        if factors.shape != plain.shape or not np.allclose(factors, plain, rtol=1e-3):
            raise UserError(
                f"{path}: {metadata.ROPE_TENSOR} scales the rotary embedding in another way than Llama 3, which is not "
                "read; give the original checkpoint"
            )
    elif wanted is not None:
        raise UserError(f"{path}: {metadata.ROPE_TENSOR} is missing, config.json asks for scaled rotary embeddings")
    said, asked = metadata.scaling(reader), metadata.scaling_of(config)
    if said.kind != asked.kind or not math.isclose(said.factor, asked.factor, rel_tol=1e-3):
        raise UserError(
            f"{path}: its metadata scale the rotary embedding as {said}, its configuration as {asked}; "
            "give the original checkpoint"
        )


def _architecture(reader: Any) -> str:
    return str(reader.get_field("general.architecture").contents())
