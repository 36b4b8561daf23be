"""How much tokens count for a part of a linear's outputs, by a loss's gradients there (GuidedQuant, arXiv 2505.07004).

A change Δ of the weights (out, in) moves a loss by about ½ Σ_t (g_tᵀ Δ x_t)², g_t its gradient at the outputs at token
t. With outputs independent of one another row j has the Hessian Σ_t g_tj² x_t x_tᵀ; a Hessian for each row is too much,
so neighbouring rows share the mean of their squares (eq. 6): Σ_t s_t x_t x_tᵀ, which is the ordinary one with weights.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch import Tensor


def row_groups(rows: int, groups: int) -> list[slice]:
    """``rows`` in at most ``groups`` pieces of neighbours, as equal as can be."""
    groups = min(groups, rows)
    sizes = [rows // groups + (number < rows % groups) for number in range(groups)]
    return [slice(*ends) for ends in pairwise(accumulate(sizes, initial=0))]


def saliences(gradients: Tensor, groups: int) -> Tensor:
    """(T, G) float32 means of squares over draws and each group's outputs of ``gradients`` (R, T, out)."""
    squares = gradients.float().square().mean(0)
    return torch.stack([squares[:, rows].mean(1) for rows in row_groups(squares.shape[1], groups)], 1)


def normalised(found: Tensor, power: float = 1.0) -> Tensor:
    """Saliences (N, T, G) to a ``power``, with mean 1 over all tokens of each group, so that a damping means the same.

    A power below 1 is no approximation of the loss but a guard: saliences have heavy tails, and with them as they are a
    hundredth of the tokens may make up a Hessian, which then fits these and leaves all other directions to the damping.
    A group whose gradients all vanish tells nothing: there all tokens count the same.
    """
    raised = found.pow(power)
    means = raised.mean((0, 1), dtype=torch.float64).to(found)
    return torch.where(means > 0, raised / means, torch.ones_like(raised))
