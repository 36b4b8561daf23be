"""Wanda: weights whose size times the size of their inputs is smallest become zero, the others stay.

arXiv 2306.11695, eq. 1: the score of w_ij is |w_ij| · ‖x_j‖₂, compared within each row (§3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixprec.compress.solving import Solved, Solver, Task, plain
from mixprec.numerics.masks import mask
from mixprec.numerics.sparsity import Sparsity


def wanda(weight: Tensor, hessian_diagonal: Tensor, sparsity: Sparsity) -> Tensor:
    """``weight`` (out, in), finite, with the lowest scores of each row, or of each n:m group, set to zero.

    ``hessian_diagonal`` (in,), not negative: the mean of x_j² over tokens, ‖x_j‖₂² up to a constant that changes no
    comparison. Inputs that were never active have score 0 and go first.
    Raises ValueError where it has another width than ``weight``.
    """
    if hessian_diagonal.shape != weight.shape[1:]:
        raise ValueError(f"{weight.shape[1]} input columns, but the Hessian's diagonal has {hessian_diagonal.numel()}")
    wide = torch.promote_types(weight.dtype, torch.float32)
    scores = weight.to(wide).abs() * hessian_diagonal.to(wide).sqrt()
    return weight.masked_fill(mask(scores, sparsity, scope="row"), 0)


def _solve(task: Task) -> Solved:
    assert task.treatment.sparsity is not None
    return plain(wanda(task.weight, task.inputs.statistics.hessian.diagonal(), task.treatment.sparsity))


SOLVER = Solver(_solve)
