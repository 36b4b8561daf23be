"""Magnitude pruning: the smallest weights become zero, the others stay. Needs no data.

The baseline of SparseGPT and Wanda (arXiv 2301.00774, 2306.11695), which have to beat it.
"""

from __future__ import annotations

from torch import Tensor

from mixprec.compress.solving import Solved, Solver, Task, plain
from mixprec.numerics.masks import mask
from mixprec.numerics.sparsity import Sparsity


def magnitude(weight: Tensor, sparsity: Sparsity) -> Tensor:
    """``weight`` (out, in), finite, with the smallest |w| of the whole matrix, or of each n:m group, set to zero."""
    return weight.masked_fill(mask(weight.abs(), sparsity, scope="matrix"), 0)


def _solve(task: Task) -> Solved:
    assert task.treatment.sparsity is not None
    return plain(magnitude(task.weight, task.treatment.sparsity))


SOLVER = Solver(_solve)
