"""The type in which blocks multiply: the model's own, or bfloat16, which processors with instructions for it take a
quarter of the time for. Weights, sums and solves stay as they are."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch

Products = Literal["model", "bfloat16"]


def multiplying(products: Products, device: torch.device) -> AbstractContextManager[object]:
    """Linears and attention inside multiply in bfloat16, or as their inputs are."""
    return torch.autocast(device.type, torch.bfloat16, enabled=products == "bfloat16")


def exact(device: torch.device) -> AbstractContextManager[object]:
    """Nothing inside is rounded for ``multiplying`` around it: for what is made of a block's inputs on the way."""
    return torch.autocast(device.type, enabled=False)
