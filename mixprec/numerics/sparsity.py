"""How many weights a method zeroes and in which pattern: ``0.5``, ``2:4``; and the choice of the lowest scores."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NoReturn

import numpy as np
import torch
from torch import Tensor

from mixprec.core.errors import UserError

#: Weights that compete with one another: those of a row, or all of a matrix.
Scope = Literal["row", "matrix"]

_PATTERN = re.compile(r"(?P<kept>[1-9]\d*):(?P<group>[1-9]\d*)")
_NUMBER = re.compile(r"\d*\.?\d+(?:[eE][-+]?\d+)?")
_HELP = "a sparsity is the share of zeros, above 0 and below 1 (0.5), or n:m, n of every m weights kept (2:4)"
#: Groups up to this size are ranked by comparing all pairs, which is faster than selection along a short axis.
_COMPARED = 8


@dataclass(frozen=True)
class Sparsity:
    """A share of zeros, in any place or in a pattern.

    ``fraction``: share of weights that become zero, above 0 and below 1. ``pattern``: None, or (n, m) with 0 < n < m:
    of every m consecutive weights along the input dimension n are KEPT and m − n become zero, as hardware's 2:4 is
    read; ``fraction`` is then (m − n)/m. Where m does not divide the width, the last r weights of a row lose
    floor(r (m − n)/m), so that fewer may be zero than ``fraction`` says.
    """

    fraction: float
    pattern: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"no such sparsity: {self!r}; {_HELP}")
        if self.pattern and (self.pattern[0] < 1 or self.fraction != 1 - self.pattern[0] / self.pattern[1]):
            raise ValueError(f"no such sparsity: {self!r}; {_HELP}")

    @classmethod
    def kept_of(cls, kept: int, group: int) -> Sparsity:
        """``kept`` non-zeros of every ``group`` consecutive weights; raises ValueError unless 0 < kept < group."""
        if not 0 < kept < group:
            raise ValueError(f"no such sparsity: {kept}:{group}; {_HELP}")
        return cls(1 - kept / group, (kept, group))

    def __str__(self) -> str:
        return f"{self.pattern[0]}:{self.pattern[1]}" if self.pattern else repr(self.fraction)


def parse_sparsity(value: str | float) -> Sparsity:
    """The sparsity that ``value`` names, a number or a text; ``str`` of a sparsity is its text.

    Raises UserError for anything else, with examples and the valid range.
    """
    text = str(value)
    match = _PATTERN.fullmatch(text)
    if match:
        kept, group = int(match["kept"]), int(match["group"])
        return Sparsity.kept_of(kept, group) if kept < group else _refuse(value)
    number = float(text) if _NUMBER.fullmatch(text) else 0.0
    return Sparsity(number) if 0 < number < 1 else _refuse(value)


def _refuse(value: object) -> NoReturn:
    raise UserError(f"sparsity {value!r} is not known; {_HELP}")


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


def pattern_zeros(width: int, kept: int, group: int) -> int:
    """Zeros in a group of ``width`` <= ``group`` weights of the pattern kept:group; whole groups lose group − kept."""
    return width * (group - kept) // group


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
