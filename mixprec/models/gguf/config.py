"""The configuration that transformers makes of a GGUF model, and whether it computes what llama.cpp does.

transformers passes over part of the metadata, with which llama.cpp computes another function.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, PretrainedConfig

from mixprec.core.errors import UserError
from mixprec.models.discover.building import as_config
from mixprec.models.gguf import metadata, mixtures, parts
from mixprec.models.gguf.complete import described
from mixprec.models.gguf.names import ROPE_TENSOR
from mixprec.models.sizes import check_architecture


def config_in(path: Path, reader: Any) -> PretrainedConfig:
    """The configuration of the GGUF model at ``path``, which ``reader`` (parts.read) reads; its sizes are not checked.

    Raises UserError where its architecture is not supported.
    """
    if mixtures.is_mixture(reader):  # transformers knows some of them, and not all of what they say
        return as_config(described(path, reader), str(path))
    config = AutoConfig.from_pretrained(path.parent, gguf_file=parts.files_of(path)[0].name, trust_remote_code=False)
    check_architecture(config, str(path))
    metadata.complete(config, reader)
    return config


def check_rope(path: Path, reader: Any, config: PretrainedConfig) -> None:
    """Raises UserError where llama.cpp would scale rotary frequencies in another way than ``config`` says."""
    factors, wanted = metadata.rope_tensor(reader), metadata.rope_factors(config)
    if factors is not None:
        plain = np.ones_like(factors) if wanted is None else wanted.numpy()
        if factors.shape != plain.shape or not np.allclose(factors, plain, rtol=1e-3):
            raise UserError(
                f"{path}: {ROPE_TENSOR} scales the rotary embedding in another way than Llama 3, which is not "
                "read; give the original checkpoint"
            )
    elif wanted is not None:
        raise UserError(f"{path}: {ROPE_TENSOR} is missing, config.json asks for scaled rotary embeddings")
    said, asked = metadata.scaling(reader), metadata.scaling_of(config)
    if said.kind != asked.kind or not math.isclose(said.factor, asked.factor, rel_tol=1e-3):
        raise UserError(
            f"{path}: its metadata scale the rotary embedding as {said}, its configuration as {asked}; "
            "give the original checkpoint"
        )
