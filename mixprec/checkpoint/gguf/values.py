"""Weights of GGUF files, whoever wrote them."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from mixprec.checkpoint.gguf.reader import GgufFile
from mixprec.core.errors import UserError
from mixprec.models.gguf.latent import joined
from mixprec.models.gguf.names import reordered, shifted


def weight(file: GgufFile, name: str) -> Tensor:
    """A tensor by transformers' name, float32, its rows in transformers' order.

    Raises UserError where the file has none of this name, or nobody here knows its type.
    """
    if name not in file.raw:
        raise UserError(f"{file.path}: has no {name}")
    piece = file.raw[name]
    found = [_values(file, name, raw, piece.expert) for raw in piece.raw]
    tensor = joined(found[0], found[1]) if len(found) > 1 else found[0].reshape(piece.shape)
    return shifted(name, reordered(name, tensor, file.shapes, back=True), file.shapes, back=True)


def _values(file: GgufFile, name: str, raw: Any, expert: int | None) -> Tensor:
    """A tensor of the file, or the part of it that is an expert's, float32."""
    try:
        values = gguf.quants.dequantize(raw.data if expert is None else raw.data[expert], raw.tensor_type)
    except NotImplementedError:
        kind = raw.tensor_type.name.lower()
        raise UserError(f"{file.path}: {name}: weights of type {kind} can't be read") from None
    # A copy: the file is mapped into memory, and torch would write into it.
    return torch.from_numpy(np.array(values, np.float32))
