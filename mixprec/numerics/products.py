"""The type in which blocks multiply: the model's own, or bfloat16, which processors with instructions for it take a
quarter of the time for. Weights, sums and solves stay as they are."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # recipes know the name, and need no torch
    import torch

Products = Literal["model", "bfloat16"]


def multiplying(products: Products, device: torch.device) -> AbstractContextManager[object]:
    """Linears and attention inside multiply in bfloat16, or as their inputs are."""
    import torch

    return torch.autocast(device.type, torch.bfloat16) if products == "bfloat16" else nullcontext()


def unmixed(products: Products, dtype: str, key: str) -> str | None:
    """Why a model in ``dtype`` can't multiply in ``products``, None where it can; ``key``: what says that it shall."""
    if products == "bfloat16" and dtype == "float16":  # autocast stops where two tensors in float16 are joined
        return f"{key}: bfloat16 doesn't go with dtype: float16; compute in float32 or bfloat16, or leave {key} out"
    return None


def exact(device: torch.device) -> AbstractContextManager[object]:
    """Nothing inside is rounded for ``multiplying`` around it: for what is made of a block's inputs on the way."""
    import torch

    rounding = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if rounding else nullcontext()
