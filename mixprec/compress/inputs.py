"""Mean squares of every linear's inputs in the uncompressed model, one decoder block in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from mixprec.calibration.data import Calibration
from mixprec.core import publish
from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder
from mixprec.walk import blocks
from mixprec.walk.options import MEMORY_GB
from mixprec.walk.samples import Samples
from mixprec.walk.states import States
from mixprec.walk.walk import walk


@torch.no_grad()
def mean_squares(
    opened: blocks.Blocks,
    inventory: Decoder,
    calibration: Calibration,
    beside: Path,
    advance: Callable[[int], None] = lambda _: None,
    memory_gb: float = MEMORY_GB,
) -> tuple[dict[str, Tensor], int]:
    """Module's address -> means of x_j² (in,) float32 over the calibration tokens by their weights; how many tokens.

    ``advance`` is told of each module that is done. Beyond ``memory_gb`` 10^9 bytes calibration states lie in files
    ``beside`` a path. Raises UserError for inputs that are NaN or infinite.
    """
    weights = torch.ones(calibration.tokens.shape) if calibration.weights is None else calibration.weights.float()
    total = float(weights.sum(dtype=torch.float64))
    found: dict[str, Tensor] = {}
    with publish.scratch(beside) as spilled:
        samples = Samples(opened.model, calibration, States(int(memory_gb * 1e9), spilled), 1)

        def visit(index: int, block: nn.Module) -> None:
            here = inventory.blocks[index].groups
            sums = [torch.zeros(group[0].in_features, dtype=torch.float64) for group in here]

            def add(number: int, group: int, inputs: Tensor) -> None:
                weighted = inputs.float().square() * weights[samples.batches[number]].to(inputs.device)[..., None]
                sums[group] += weighted.sum((0, 1)).cpu().double()

            samples.run(index, block, here, add)
            for shared, seen in zip(here, sums, strict=True):
                if not torch.isfinite(seen).all():
                    raise UserError(
                        f"{shared[0].address}: its inputs are NaN or infinite; compute in float32 or bfloat16"
                    )
                found.update({module.address: (seen / total).float() for module in shared})
            advance(sum(len(group) for group in here))

        walk(opened, range(opened.layers), visit)
    return found, int((weights > 0).sum())
