"""Rounding a whole model to nearest without the engine: what checkpoints of method rtn are compared with."""

from __future__ import annotations

from typing import Any

import torch

from mixprec.numerics.formats import Format
from mixprec.numerics.groupwise import dequantize, quantize
from mixprec.plan.schema import Plan


@torch.no_grad()
def round_in_memory(model: Any, plan: Plan, stored: torch.dtype | None = None) -> None:
    """Rounding to nearest module by module, without the engine; ``stored``: the checkpoint's type, if another."""
    for address, format in plan.formats.items():
        weight = model.get_submodule(address).weight
        if isinstance(format, Format):
            given = weight.to(stored or weight.dtype)
            weight.copy_(dequantize(quantize(given, format), format, given.dtype))
