"""Weights of GGUF files, whoever wrote them."""

from __future__ import annotations

import gguf
import numpy as np
import torch
from torch import Tensor

from mixprec.checkpoint.gguf.reader import GgufFile
from mixprec.core.errors import UserError
from mixprec.models.gguf.names import reordered, shifted


def weight(file: GgufFile, name: str) -> Tensor:
    """A tensor by transformers' name, float32, its rows in transformers' order.

    Raises UserError where the file has none of this name, or nobody here knows its type.
    """
    if name not in file.raw:
        raise UserError(f"{file.path}: has no {name}")
    raw = file.raw[name]
    try:
        values = gguf.quants.dequantize(raw.data, raw.tensor_type)
    except NotImplementedError:
        kind = raw.tensor_type.name.lower()
        raise UserError(f"{file.path}: {name}: weights of type {kind} can't be read") from None
    # A copy: the file is mapped into memory, and torch would write into it.
    tensor = torch.from_numpy(np.array(values, np.float32)).reshape(file.tensors[name].shape)
    return shifted(name, reordered(name, tensor, file.shapes, back=True), file.shapes, back=True)
