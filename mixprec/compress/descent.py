"""Coordinate descent on codes and scales, from where a pass over the columns left them.

GPTQ settles each column once, knowing what comes before it. Here every column is settled again, knowing all others: of
the error tr(Δ H Δᵀ), Δ = Ŵ − T, it takes the code at which the error is least, T_j − (Σ_{k≠j} Δ_k H_kj) / H_jj rounded
(as QuantEase, arXiv 2309.01885). Before each such round every row's scales are those of least error for its codes: the
normal equations of its groups, weighted by H (as the scales of least squares in numerics.groupwise, across groups).

H is the damped Hessian that the pass was solved with. T is what the error is least for before rounding: the weights
themselves, or for GPTAQ those that make up for drift. No row ends worse than it began.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mixprec.numerics.formats import Format
from mixprec.numerics.groupwise import Grid, Quantized, level_range, per_column
from mixprec.numerics.hessian import Factor

#: Columns that are settled one by one before a matrix product updates the rest.
_BLOCK = 64
#: Numbers of normal equations at once.
_EQUATIONS = 2**24
#: A scale of least squares that is so many times another, or less than one part in it, belongs to no such codes.
_FARTHEST = 2.0


class Descended(NamedTuple):
    """``rests`` (out, in): how far each weight that was best for its column is from the one that was taken."""

    quantized: Quantized
    rests: Tensor


def damped(hessian: Tensor, factor: Factor) -> Tensor:
    """The Hessian (in, in), in natural order, that ``factor`` was made of: float32 or wider."""
    found = hessian.to(torch.promote_types(hessian.dtype, torch.float32), copy=True)
    live = ~factor.dead
    mean = found.diagonal()[live].mean(dtype=torch.float64) if bool(live.any()) else 0.0
    found.diagonal().add_(live.to(found.dtype) * float(factor.damping * mean)).masked_fill_(factor.dead, 1.0)
    return found


def descend(
    start: Quantized, target: Tensor, hessian: Tensor, format: Format, rounds: int, rests: Tensor | None = None
) -> Descended:
    """``rounds`` of scales, then codes, from ``start``, for the ``target`` T (out, in), float32 or wider, finite.

    ``hessian`` (in, in): H, in T's type, its diagonal above 0. ``rests`` (out, in): those of ``start``, which rows that
    gain nothing keep; None: T − Ŵ. Rows are independent.
    """
    work = _Work(start, target, hessian, format)
    first = work.losses()
    for _ in range(rounds):
        work.fit_scales()
        work.settle_columns()
    gained = (work.losses() < first)[:, None]
    codes, (scales, zeros) = start
    found = Grid(torch.where(gained, work.stored, scales), zeros)
    before = target - work.restored(work.levels_of(codes), scales) if rests is None else rests
    return Descended(
        Quantized(torch.where(gained, work.codes(), codes), found), torch.where(gained, work.rests, before)
    )


class _Work:
    """Levels, whole steps from zero, and scales on their way, both in the target's type."""

    def __init__(self, start: Quantized, target: Tensor, hessian: Tensor, format: Format) -> None:
        self._target, self._hessian, self._format = target, hessian, format
        self._zeros = start.grid.zeros
        self._columns = target.shape[1]
        width = format.width(self._columns)
        self._groups = [slice(first, min(first + width, self._columns)) for first in range(0, self._columns, width)]
        self._lowest, self._highest = self._ranges()
        self.levels, self.stored = self.levels_of(start.codes), start.grid.scales
        self.rests = torch.zeros_like(target)
        self._aim = target @ hessian

    def levels_of(self, codes: Tensor) -> Tensor:
        levels = codes.to(self._target.dtype)
        return levels if self._zeros is None else levels - per_column(self._zeros, self._columns, self._format)

    def codes(self) -> Tensor:
        if self._zeros is None:
            return self.levels.to(torch.int8)
        return (self.levels + per_column(self._zeros, self._columns, self._format)).to(torch.uint8)

    def restored(self, levels: Tensor, scales: Tensor) -> Tensor:
        return levels * per_column(scales.to(levels.dtype), self._columns, self._format)

    def losses(self, scales: Tensor | None = None) -> Tensor:
        """(out,): each row's part of the error, with other ``scales`` if need be."""
        delta = self.restored(self.levels, self.stored if scales is None else scales) - self._target
        return ((delta @ self._hessian) * delta).sum(1)

    def fit_scales(self) -> None:
        """The scales of least squares for the codes, rounded as they are stored, in the rows where they are better."""
        now = self.stored.to(self._target.dtype)
        rows = max(1, _EQUATIONS // len(self._groups) ** 2)
        pieces = zip(self.levels.split(rows), self._aim.split(rows), now.split(rows), strict=True)
        found = torch.cat([self._least_squares(*piece) for piece in pieces])
        usable = (found / now > 1 / _FARTHEST) & (found / now < _FARTHEST)
        tried = torch.where(usable, found, now).to(self.stored.dtype)
        self.stored = torch.where((self.losses(tried) < self.losses())[:, None], tried, self.stored)

    def _least_squares(self, levels: Tensor, aim: Tensor, now: Tensor) -> Tensor:
        """Scales (n, groups) of some rows; those of groups of zeros stay as they are ``now``."""
        normal = levels.new_empty(len(levels), len(self._groups), len(self._groups))
        for number, here in enumerate(self._groups):
            pulled = (levels[:, here] @ self._hessian[here]).mul_(levels)
            for other, there in enumerate(self._groups):
                normal[:, number, other] = pulled[:, there].sum(1)
        right = torch.stack([(aim[:, here] * levels[:, here]).sum(1) for here in self._groups], 1)
        empty = normal.diagonal(dim1=1, dim2=2) == 0
        normal += torch.diag_embed(empty.to(normal.dtype))
        found: Tensor = torch.linalg.solve(normal.double(), torch.where(empty, now, right).double())
        return found.to(now)

    def settle_columns(self) -> None:
        """Each column's codes anew, one column after the other."""
        scales = per_column(self.stored.to(self._target.dtype), self._columns, self._format)
        slopes = (self.levels * scales - self._target) @ self._hessian
        for first in range(0, self._columns, _BLOCK):
            here = slice(first, min(first + _BLOCK, self._columns))
            moved = self._settle(here, scales[:, here].T.contiguous(), slopes[:, here].T.contiguous())
            slopes.addmm_(moved.T, self._hessian[here])

    def _settle(self, here: slice, scales: Tensor, slopes: Tensor) -> Tensor:
        """Settle a block's columns, given (n, out); returns by how much their weights moved."""
        block, levels = self._hessian[here, here], self.levels[:, here].T.contiguous()
        rests, moved = torch.empty_like(levels), torch.empty_like(levels)
        for number, (scale, slope) in enumerate(zip(scales, slopes, strict=True)):
            best = levels[number] * scale - slope / block[number, number]
            new = (best / scale).round_().clamp_(self._lowest[here.start + number], self._highest[here.start + number])
            torch.sub(new * scale, levels[number] * scale, out=moved[number])
            torch.addcmul(best, new, scale, value=-1, out=rests[number])
            levels[number] = new
            slopes.addr_(block[number], moved[number])
        self.levels[:, here], self.rests[:, here] = levels.T, rests.T
        return moved

    def _ranges(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest level of each column (in, out)."""
        zeros = None if self._zeros is None else per_column(self._zeros, self._columns, self._format).T
        low, high = level_range(zeros, self._format, self._target.dtype)
        shape = self._target.T.shape
        wide = [torch.as_tensor(end, dtype=self._target.dtype, device=self._target.device) for end in (low, high)]
        return wide[0].expand(shape), wide[1].expand(shape)
