"""Round to nearest: every weight goes to the closest point of its group's grid. Needs no data.

The baseline of the GPTQ paper (arXiv 2210.17323, §5), which methods that look at activations have to beat.
"""

from __future__ import annotations

import torch

from mixprec.compress.solving import Solved, Solver, Task
from mixprec.numerics.affine import quantize_affine
from mixprec.numerics.formats import AffineFormat, Format
from mixprec.numerics.groupwise import Quantized, quantize


def rtn(weight: torch.Tensor, format: Format) -> Quantized:
    """Codes and grid of ``weight`` (out, in), finite; scales in the 16-bit type of its checkpoint."""
    return quantize(weight, format)


def _solve(task: Task) -> Solved:
    format = task.treatment.format
    if isinstance(format, AffineFormat):
        return task.rounded(quantize_affine(task.weight, format), format)
    return task.rounded(rtn(task.weight, task.grid), task.grid)


SOLVER = Solver(_solve)
