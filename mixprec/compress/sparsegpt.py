"""SparseGPT: remove weights column by column and let the columns behind make up for it; jointly with quantization.

arXiv 2301.00774, algorithm 1: with U from numerics.hessian.factorize, column j of the weights is replaced by its zeros
and its grid points, and the error, divided by U[j, j], times row j of U is taken off the columns that follow: the exact
step of Optimal Brain Surgeon for a column whose predecessors are settled. ``refine`` then moves the weights that are
left to where the Hessian wants them, predecessors too, which the column order can't.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mixprec.compress.solving import Solved, Solver, Task, plain
from mixprec.numerics.formats import WHOLE_ROW, Format, Keep
from mixprec.numerics.groupwise import Grid, Quantized, dequantize, fit, scale_dtype_of
from mixprec.numerics.hessian import Factor
from mixprec.numerics.masks import lowest
from mixprec.numerics.sparsity import Sparsity, pattern_zeros

#: Columns that are solved one by one before the rest of their block follows in one product.
_LEAF = 16


class SparseSolved(NamedTuple):
    """A pruned weight: ``weight`` (out, in), float32, or float64 where weight or factor were; ``mask`` (out, in) bool.

    ``mask`` is True where a weight was removed. ``quantized``: codes and grid that ``weight`` was restored from, its
    removed weights the code of zero; None where no format was asked for.
    """

    weight: Tensor
    mask: Tensor
    quantized: Quantized | None


def sparsegpt(
    weight: Tensor,
    factor: Factor,
    sparsity: Sparsity,
    format: Format | None = None,
    *,
    mask: Tensor | None = None,
    block: int = 128,
    scale_dtype: torch.dtype | None = None,
) -> SparseSolved:
    """Prune ``weight`` (out, in), finite, and quantize what is left to ``format``; ``factor`` is its inputs' Hessian's.

    The lowest w² / U[j, j]² go. Unstructured, they are chosen among all rows of each ``block`` of columns when it is
    reached, round(fraction · out · in) in all; n:m, within each row's group when that is reached. ``mask`` (out, in)
    bool says instead what to remove. Weights of dead inputs become zero beyond that count.

    A group's grid is fitted to what the weights have become when the group is reached, without those known to go;
    to the weights as given where columns are reordered or n:m groups cross the format's. Scales are rounded to
    ``scale_dtype``, by default the weights' own (groupwise.scale_dtype_of), before any code is computed.

    Raises ValueError for n:m with a factor of reordered columns (its groups would be torn apart), and for a factor or
    mask of another width.
    """
    if len(factor.upper) != weight.shape[1]:
        raise ValueError(f"the weight has {weight.shape[1]} input columns, the factor {len(factor.upper)}")
    if mask is not None and mask.shape != weight.shape:
        raise ValueError(f"the weight is {tuple(weight.shape)}, the mask {tuple(mask.shape)}")
    if sparsity.pattern and factor.order is not None and mask is None:
        raise ValueError(f"{sparsity} needs the columns in their own order; factorize without act_order")
    solver = _Solver(weight, factor, sparsity, mask)
    if format is not None:
        solver.rounding = _Rounding(
            solver.columns, factor, sparsity, format, scale_dtype or scale_dtype_of(weight.dtype)
        )
    return solver.run(block)


def refine(
    weight: Tensor, solved: Tensor, mask: Tensor, hessian: Tensor, *, steps: int = 10, damping: float = 0.01
) -> Tensor:
    """Ŵ (out, in), zero where ``mask``, from ``solved`` nearer to the least tr((W − Ŵ)(H + λ)(W − Ŵ)ᵀ).

    The mask stays; all remaining weights of a row move at once, by ``steps`` of conjugate gradients preconditioned with
    the diagonal (as in ALPS, arXiv 2406.07831), each one product (out, in) × (in, in), all rows together. λ is
    ``damping`` times the mean of the diagonal of ``hessian`` (in, in); without it weights fit the calibration text and
    no other. Not for weights on a grid: refine first, then round with ``sparsegpt(…, mask=mask)``.
    """
    wide = torch.promote_types(torch.promote_types(weight.dtype, hessian.dtype), torch.float32)
    ridge = damping * float(hessian.diagonal().mean(dtype=torch.float64))
    damped = hessian.to(wide, copy=True)
    damped.diagonal().add_(ridge)
    scale = damped.diagonal()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale)).reciprocal()
    found = solved.to(wide).masked_fill(mask, 0)
    residual = ((weight.to(wide) - found) @ damped).masked_fill_(mask, 0)
    ahead = residual * scale
    power = _rowwise(residual, ahead)
    direction = ahead
    for _ in range(steps):
        bent = (direction @ damped).masked_fill_(mask, 0)
        length = _ratio(power, _rowwise(direction, bent))
        found.addcmul_(length, direction)
        residual.addcmul_(length, bent, value=-1)
        ahead = residual * scale
        power, before = _rowwise(residual, ahead), power
        direction = ahead + _ratio(power, before) * direction
    return found


class _Solver:
    """The state of one solve, transposed so that a column of the weight lies in one piece, in the order of solving."""

    def __init__(self, weight: Tensor, factor: Factor, sparsity: Sparsity, mask: Tensor | None) -> None:
        wide = torch.promote_types(torch.promote_types(weight.dtype, factor.upper.dtype), torch.float32)
        self.columns = _to_solve(weight.to(wide).masked_fill(factor.dead, 0), factor)
        self.rounding: _Rounding | None = None
        self._removed = torch.zeros_like(self.columns, dtype=torch.bool)
        self._errors = torch.empty_like(self.columns)
        self._upper = factor.upper.to(wide)
        self._pivots = self._upper.diagonal()[:, None]
        self._inverse = (1 / self._upper.diagonal()).tolist()
        # What a removed weight is multiplied with to give its error: 1 / U[j, j]; 0 for the others.
        self._weights = torch.zeros_like(self.columns)
        self._factor = factor
        self._share = sparsity.fraction * weight.shape[0] if mask is None and not sparsity.pattern else None
        self._pattern = sparsity.pattern if mask is None else None
        if mask is not None:
            self._remove(0, len(self.columns), _to_solve(mask, factor))

    def run(self, block: int) -> SparseSolved:
        width = len(self.columns)
        block = max(1, block) if not self._pattern else max(1, block // self._pattern[1]) * self._pattern[1]
        group = self.rounding.nested if self.rounding and self.rounding.nested else width
        for low, high in _blocks(width, block, group):
            if self._share is not None:
                self._choose(low, high, self._share)
            for start, end in _ranges(low, high, group):
                self._follow(slice(low, start), slice(start, end))
                if self.rounding:
                    self.rounding.enter(start, self.columns, self._removed)
                self._solve(start, end)
            self._follow(slice(low, high), slice(high, width))
        mask = _natural(self._removed, self._factor)
        if self.rounding is None:
            return SparseSolved(_natural(self.columns.masked_fill_(self._removed, 0), self._factor), mask, None)
        quantized = self.rounding.result(self._factor)
        return SparseSolved(dequantize(quantized, self.rounding.format, self.columns.dtype), mask, quantized)

    def _solve(self, low: int, high: int) -> None:
        """Columns low … high − 1, up to date on entry: the first half, then the second with the first one's errors."""
        align = self._pattern[1] if self._pattern else 1
        if high - low <= max(_LEAF, align):
            self._leaf(low, high, align)
            return
        middle = low + max(align, (high - low) // 2 // align * align)
        self._solve(low, middle)
        self._follow(slice(low, middle), slice(middle, high))
        self._solve(middle, high)

    def _follow(self, done: slice, rest: slice) -> None:
        """The columns ``rest`` make up for the errors of the columns ``done``."""
        if done.start < done.stop and rest.start < rest.stop:
            self.columns[rest].addmm_(self._upper[done, rest].T, self._errors[done], alpha=-1)

    def _leaf(self, low: int, high: int, align: int) -> None:
        for column in range(low, high):
            if self._pattern and (column - low) % align == 0:
                self._choose_in_group(column, min(column + align, high), *self._pattern)
            current, error = self.columns[column], self._errors[column]
            if self.rounding:
                self.rounding.error(column, current, self._removed[column], out=error)
                error.mul_(self._inverse[column])
            else:
                torch.mul(current, self._weights[column], out=error)
            if column + 1 < high:
                self.columns[column + 1 : high].addr_(self._upper[column, column + 1 : high], error, alpha=-1)

    def _choose(self, low: int, high: int, share: float) -> None:
        """The lowest scores of a block of columns; ``share``: how many go in a column, on average."""
        scores = self._scores(low, high)
        # Differences of rounded sums, so that the blocks' counts add up to the rounded whole.
        count = round(share * high) - round(share * low)
        self._remove(low, high, lowest(scores.flatten(), count).view_as(scores))

    def _choose_in_group(self, low: int, high: int, kept: int, group: int) -> None:
        self._remove(low, high, lowest(self._scores(low, high), pattern_zeros(high - low, kept, group), dim=0))

    def _scores(self, low: int, high: int) -> Tensor:
        return (self.columns[low:high] / self._pivots[low:high]).square_()

    def _remove(self, low: int, high: int, removed: Tensor) -> None:
        self._removed[low:high] = removed
        torch.div(removed, self._pivots[low:high], out=self._weights[low:high])


class _Rounding:
    """Grids of a weight that is being solved, and its steps from zero (code − zero point) in the order of solving."""

    def __init__(
        self, columns: Tensor, factor: Factor, sparsity: Sparsity, format: Format, scale_dtype: torch.dtype
    ) -> None:
        width, rows = columns.shape
        size = format.width(width)
        self.format = format
        self._whole_row = Format(format.bits, WHOLE_ROW, format.symmetric)
        self._scale_dtype = scale_dtype
        self._low = -(2 ** (format.bits - 1)) if format.symmetric else 0
        self._high = self._low + 2**format.bits - 1
        order = torch.arange(width) if factor.order is None else factor.order
        self._groups: list[int] = (order // size).tolist()
        self._scales = columns.new_empty(format.groups(width), rows)
        self._zeros = None if format.symmetric else torch.empty_like(self._scales)
        self._steps = torch.empty_like(columns)
        whole = sparsity.pattern is None or size == width or size % sparsity.pattern[1] == 0
        #: The size of groups whose grids are fitted when they are reached; None where all are fitted at the start.
        self.nested = size if factor.order is None and whole else None
        if self.nested is None:
            self._set(slice(None), fit(_natural(columns, factor), format, scale_dtype))

    def enter(self, column: int, columns: Tensor, removed: Tensor) -> None:
        """Fit the grid of the group that begins with ``column``, if one does; all its columns are up to date."""
        if self.nested and column % self.nested == 0:
            members = slice(column, column + self.nested)
            kept = columns[members].masked_fill(removed[members], 0)
            group = column // self.nested
            self._set(slice(group, group + 1), fit(kept.T, self._whole_row, self._scale_dtype))

    def error(self, column: int, current: Tensor, removed: Tensor, *, out: Tensor) -> None:
        """Round ``current`` (rows,), one column, but to zero where ``removed``; out = current − rounded."""
        group = self._groups[column]
        scales, steps = self._scales[group], self._steps[column]
        torch.div(current, scales, out=steps).round_()
        if self._zeros is None:
            steps.clamp_(self._low, self._high)
        else:
            steps.add_(self._zeros[group]).clamp_(self._low, self._high).sub_(self._zeros[group])
        steps.masked_fill_(removed, 0)
        torch.addcmul(current, steps, scales, value=-1, out=out)

    def result(self, factor: Factor) -> Quantized:
        """Codes (out, in) and grid, columns in natural order."""
        scales = self._scales.T.contiguous().to(self._scale_dtype)
        steps = self._steps
        if self._zeros is None:
            return Quantized(_natural(steps.to(torch.int8), factor), Grid(scales, None))
        zeros = self._zeros.T.contiguous().to(torch.uint8)
        groups = torch.tensor(self._groups, device=steps.device)
        return Quantized(_natural((steps + self._zeros[groups]).to(torch.uint8), factor), Grid(scales, zeros))

    def _set(self, groups: slice, grid: Grid) -> None:
        self._scales[groups] = grid.scales.T.to(self._scales.dtype)
        if self._zeros is not None and grid.zeros is not None:
            self._zeros[groups] = grid.zeros.T.to(self._zeros.dtype)


def _blocks(width: int, block: int, group: int) -> list[tuple[int, int]]:
    """Blocks of about ``block`` columns that hold whole groups, or lie within one."""
    if group <= block:
        return _ranges(0, width, block // group * group)
    return [part for low, high in _ranges(0, width, group) for part in _ranges(low, high, block)]


def _ranges(low: int, high: int, step: int) -> list[tuple[int, int]]:
    return [(start, min(start + step, high)) for start in range(low, high, step)]


def _to_solve(values: Tensor, factor: Factor) -> Tensor:
    """(out, in) in natural order -> (in, out) in the order of solving, contiguous, a copy."""
    turned = values.T if factor.order is None else values.T[factor.order]
    return turned.clone(memory_format=torch.contiguous_format)


def _natural(columns: Tensor, factor: Factor) -> Tensor:
    """(in, out) in the order of solving -> (out, in) in natural order, contiguous."""
    if factor.order is not None:
        columns = columns[torch.argsort(factor.order)]
    return columns.T.contiguous()


def _rowwise(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(1, keepdim=True)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, 0 where a row is solved already and both vanish."""
    return torch.where(below > 0, above / below, torch.zeros_like(above))


def _solve(task: Task) -> Solved:
    weight, sparsity, options = task.weight, task.treatment.sparsity, task.options
    assert sparsity is not None
    format = None if isinstance(task.treatment.format, Keep) else task.grid
    factor, hessian = task.inputs.factor(), task.inputs.statistics.hessian
    found = sparsegpt(weight, factor, sparsity, None if options.refine else format)
    if options.refine:
        moved = refine(weight, found.weight, found.mask, hessian, steps=options.refine, damping=options.damping)
        found = found._replace(weight=moved)
        if format is not None:
            scales = scale_dtype_of(weight.dtype)
            found = sparsegpt(moved, factor, sparsity, format, mask=found.mask, scale_dtype=scales)
    if format is None or found.quantized is None:
        return plain(found.weight.to(weight.dtype), factor)
    return task.rounded(found.quantized, format, factor)


SOLVER = Solver(_solve)
