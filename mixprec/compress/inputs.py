"""Mean squares of every linear's inputs in the uncompressed model, one decoder block in memory at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mixprec import modules
from mixprec.calibration.data import Calibration
from mixprec.compress.block import Group, watching
from mixprec.core.errors import UserError
from mixprec.modules import Inventory
from mixprec.walk import blocks


@torch.no_grad()
def mean_squares(
    opened: blocks.Blocks, inventory: Inventory, calibration: Calibration, advance: Callable[[int], None]
) -> tuple[dict[str, Tensor], int]:
    """Module's address -> means of x_j² (in,) float32 over the calibration tokens by their weights; how many tokens.

    ``advance`` is told of each module that is done. Raises UserError for inputs that are NaN or infinite.
    """
    hidden = blocks.block_inputs(opened.model, calibration.tokens).hidden
    contexts = blocks.block_inputs(opened.model, calibration.tokens[:1]).contexts
    weights = torch.ones(hidden.shape[:2]) if calibration.weights is None else calibration.weights.float()
    total = float(weights.sum(dtype=torch.float64))
    found: dict[str, Tensor] = {}
    groups: dict[int, list[Group]] = {}
    for group in modules.fused_groups(inventory):
        groups.setdefault(group[0].layer, []).append(group)
    for layer, here in groups.items():
        sums = [torch.zeros(group[0].in_features, dtype=torch.float64) for group in here]
        parts = []
        with opened.block(layer - 1) as block:
            for number in range(len(hidden)):
                rows = slice(number, number + 1)

                def add(group: int, inputs: Tensor, sums: list[Tensor] = sums, rows: slice = rows) -> None:
                    weighted = inputs.float().square() * weights[rows].to(inputs.device)[..., None]
                    sums[group] += weighted.sum((0, 1)).cpu().double()

                with watching(block, here, add):
                    parts.append(block(hidden[rows], **contexts[layer - 1]))
        hidden = torch.cat(parts)
        for shared, seen in zip(here, sums, strict=True):
            if not torch.isfinite(seen).all():
                raise UserError(f"{shared[0].address}: its inputs are NaN or infinite; compute in float32 or bfloat16")
            found |= {module.address: (seen / total).float() for module in shared}
        advance(sum(len(group) for group in here))
    return found, int((weights > 0).sum())
