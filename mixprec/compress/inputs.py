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
from mixprec.models.weights import module_of
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
    found: dict[str, Tensor] = {}
    with publish.scratch(beside) as spilled:
        samples = Samples(opened.model, calibration, States(int(memory_gb * 1e9), spilled), 1)

        def visit(index: int, block: nn.Module) -> None:
            here = inventory.blocks[index].groups
            sums = [torch.zeros(group[0].in_features, dtype=torch.float64) for group in here]
            counted = [0.0] * len(here)

            def add(number: int, group: int, inputs: Tensor) -> None:
                counts = weights[samples.batches[number]].to(inputs.device).flatten()
                tokens = getattr(module_of(block, here[group][0]), "tokens", None)
                counts = counts if tokens is None else counts[tokens]
                weighted = inputs.flatten(0, -2).float().square() * counts[:, None]
                sums[group] += weighted.sum(0).cpu().double()
                counted[group] += float(counts.sum(dtype=torch.float64))

            samples.run(index, block, here, add)
            for shared, seen, total in zip(here, sums, counted, strict=True):
                if not torch.isfinite(seen).all():
                    raise UserError(
                        f"{shared[0].address}: its inputs are NaN or infinite; compute in float32 or bfloat16"
                    )
                # An expert that no token came to has no means: zeros.
                found.update({module.address: (seen / (total or 1.0)).float() for module in shared})
            advance(sum(len(group) for group in here))

        walk(opened, range(opened.layers), visit)
    return found, int((weights > 0).sum())
