"""Which weights a method zeroes: the lowest of their scores, as a sparsity (sparsity.py) says."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mixprec.numerics.sparsity import Sparsity, pattern_zeros

#: Weights that compete with one another: those of a row, or all of a matrix.
Scope = Literal["row", "matrix"]

#: Groups up to this size are ranked by comparing all pairs, which is faster than selection along a short axis.
_COMPARED = 8


def mask(scores: Tensor, sparsity: Sparsity, scope: Scope = "row") -> Tensor:
    """The weights to REMOVE (out, in) bool: the lowest of ``scores`` (out, in), of equal ones those that come first.

    Counts are exact: round(fraction · in) of each row, or round(fraction · out · in) of the ``matrix``, halves to even.
    An n:m pattern removes the lowest of each group whatever the ``scope``; see Sparsity for a smaller last group.
    Raises ValueError for scores that are NaN.
    """
    if torch.isnan(scores).any():
        raise ValueError("scores hold NaN: the lowest are not defined")
    if sparsity.pattern:
        return _pattern_mask(scores, *sparsity.pattern)
    competing = scores if scope == "row" else scores.reshape(1, -1)
    return lowest(competing, round(sparsity.fraction * competing.shape[1])).reshape(scores.shape)


def lowest(scores: Tensor, count: int, dim: int = -1) -> Tensor:
    """Bool like ``scores``, True for the ``count`` lowest along ``dim``, of equal ones those that come first."""
    size = scores.shape[dim]
    if count <= 0 or count >= size:
        return torch.full_like(scores, count > 0, dtype=torch.bool)
    if size <= _COMPARED:
        return _lowest_by_pairs(scores.movedim(dim, 0), count).movedim(0, dim)
    limit = _smallest(scores, count, dim)
    found = scores <= limit
    if int(torch.count_nonzero(found)) > count * (scores.numel() // size):
        ties = scores == limit
        room = count - (found & ~ties).sum(dim, keepdim=True)
        found &= ~ties | (ties.cumsum(dim) <= room)
    return found


def _smallest(scores: Tensor, count: int, dim: int) -> Tensor:
    """The ``count``-th smallest along ``dim``, which stays with size 1."""
    if scores.is_cpu and scores.dtype in (torch.float32, torch.float64):  # NumPy selects ten times as fast as torch
        ordered = np.partition(scores.detach().numpy(), count - 1, axis=dim)
        return torch.from_numpy(ordered).narrow(dim, count - 1, 1)
    return scores.kthvalue(count, dim=dim, keepdim=True).values


def _pattern_mask(scores: Tensor, kept: int, group: int) -> Tensor:
    rows, width = scores.shape
    whole = width - width % group
    removed = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    groups = scores[:, :whole].reshape(-1, group)
    removed[:, :whole] = lowest(groups, group - kept).reshape(rows, whole)
    removed[:, whole:] = lowest(scores[:, whole:], pattern_zeros(width - whole, kept, group))
    return removed


def _lowest_by_pairs(scores: Tensor, count: int) -> Tensor:
    """``lowest`` along the first dimension: a score's rank is the number of those before it in order."""
    size = len(scores)
    ahead = scores[None] < scores[:, None]
    earlier = torch.ones(size, size, dtype=torch.bool, device=scores.device).tril(-1)
    ahead |= (scores[None] == scores[:, None]) & earlier.reshape(size, size, *[1] * (scores.dim() - 1))
    return ahead.sum(1) < count
