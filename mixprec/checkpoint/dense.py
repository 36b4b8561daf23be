"""The ``dense`` format: the compressed values in the source's own type. Loads wherever the source loads."""

from __future__ import annotations

import torch

from mixprec.checkpoint.target import CompressedModule


def pack(module: CompressedModule) -> dict[str, torch.Tensor]:
    """The tensors of a compressed module, by name."""
    return {module.weight_name: module.restored}
