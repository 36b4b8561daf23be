"""AWQ's clipping search (arXiv 2306.00978, §5.1): grids narrower than their groups, which have finer steps.

How much narrower is chosen for each row and group by what the errors of the group's weights do to the outputs. Released
code looks at each group as if the others had no errors. Here the groups of a row are gone through one after the other,
each with the errors that all others have at that time: coordinate descent on tr(Δ H Δᵀ) itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mixprec.numerics.formats import WHOLE_ROW, Format
from mixprec.numerics.groupwise import (
    Grid,
    Quantized,
    Search,
    dequantize,
    encode,
    fit,
    level_range,
    narrowed,
    scale_dtype_of,
)

#: The parts that released AWQ tries, 0.95 … 0.55 of the largest weight, and a scale by least squares after them.
CLIP = Search(lowest=0.55, step=0.05, refits=1)

#: Numbers of a piece of rows that is searched at once, which bounds memory.
_PIECE = 2**21


def search_clip(
    weight: Tensor,
    hessian: Tensor,
    format: Format,
    *,
    search: Search = CLIP,
    scale_dtype: torch.dtype | None = None,
) -> Grid:
    """Grids for ``weight`` (out, in), finite, narrowed where that makes the errors of the outputs smaller.

    ``hessian`` (in, in): second moments of this weight's inputs, scaled ones if it is scaled (folding.divided). Group
    by group, every row chooses between the grid that spans the group and those of ``search``; so its share of
    tr(Δ H Δᵀ) never ends larger than without clipping. Rows are independent. Codes come from groupwise.encode.
    The caller decides what is clipped (options.clips). ``scale_dtype`` by default scale_dtype_of.

    Raises ValueError where weight and Hessian don't fit.
    """
    if hessian.shape != (weight.shape[1], weight.shape[1]):
        raise ValueError(f"weights of shape {tuple(weight.shape)} and a Hessian of {tuple(hessian.shape)}")
    dtype = scale_dtype or scale_dtype_of(weight.dtype)
    wide = torch.promote_types(weight.dtype, torch.float32)
    rows = max(64, _PIECE // weight.shape[1])
    grids = [_clip_rows(piece.to(wide), hessian.to(wide), format, search, dtype) for piece in weight.split(rows)]
    zeros = [grid.zeros for grid in grids if grid.zeros is not None]
    return Grid(torch.cat([grid.scales for grid in grids]), torch.cat(zeros) if zeros else None)


def _clip_rows(weight: Tensor, hessian: Tensor, format: Format, search: Search, scale_dtype: torch.dtype) -> Grid:
    """search_clip of a few rows: coordinate descent, a group of columns at a time, on tr(Δ H Δᵀ)."""
    whole, size = Format(format.bits, WHOLE_ROW, format.symmetric), format.width(weight.shape[1])
    spanning = fit(weight, format, scale_dtype)
    delta = dequantize(Quantized(encode(weight, spanning, format), spanning), format, weight.dtype).sub_(weight)
    pull = delta @ hessian
    found = []
    for start in range(0, weight.shape[1], size):
        here = slice(start, start + size)
        block, before = hessian[here, here], delta[:, here]
        others = pull[:, here] - before @ block
        grid, after = _clip_group(weight[:, here], block, others, whole, search, scale_dtype)
        pull.addmm_(after - before, hessian[here])
        found.append(grid)
    zeros = [grid.zeros for grid in found if grid.zeros is not None]
    return Grid(torch.cat([grid.scales for grid in found], 1), torch.cat(zeros, 1) if zeros else None)


class _Fitted(NamedTuple):
    """A grid (rows, 1) on columns of one group, what it makes of them, and the loss (rows, 1)."""

    grid: Grid
    levels: Tensor
    error: Tensor
    loss: Tensor


def _clip_group(
    columns: Tensor, block: Tensor, others: Tensor, format: Format, search: Search, scale_dtype: torch.dtype
) -> tuple[Grid, Tensor]:
    """The best grid for each row of ``columns`` (rows, size) and its error, where E adds E block Eᵀ + 2 E othersᵀ."""

    def tried(grid: Grid) -> _Fitted:
        scales = grid.scales.to(columns.dtype)
        levels = torch.div(columns, scales).round_().clamp_(*level_range(grid.zeros, format, columns.dtype))
        error = torch.addcmul(-columns, levels, scales)
        return _Fitted(grid, levels, error, ((error @ block).add_(others, alpha=2) * error).sum(1, keepdim=True))

    best = tried(fit(columns, format, scale_dtype))
    low, high = columns.amin(1, keepdim=True), columns.amax(1, keepdim=True)
    for part in search.parts(format):
        best = _better(best, tried(Grid(*narrowed(low, high, format, scale_dtype, part))))
    for _ in range(search.refits):
        # The scale of least loss for these levels, by its derivative.
        pulled = best.levels @ block
        across, along = (pulled * columns - best.levels * others).sum(1, keepdim=True), (pulled * best.levels).sum(1)
        scales = (across / along[:, None]).to(scale_dtype)
        usable = torch.isfinite(scales) & (scales != 0 if format.symmetric else scales > 0)
        best = _better(best, tried(Grid(torch.where(usable, scales, best.grid.scales), best.grid.zeros)))
    return best.grid, best.error


def _better(best: _Fitted, other: _Fitted) -> _Fitted:
    better = other.loss < best.loss
    zeros = None
    if best.grid.zeros is not None and other.grid.zeros is not None:
        zeros = torch.where(better, other.grid.zeros, best.grid.zeros)
    return _Fitted(
        Grid(torch.where(better, other.grid.scales, best.grid.scales), zeros),
        torch.where(better, other.levels, best.levels),
        torch.where(better, other.error, best.error),
        torch.where(better, other.loss, best.loss),
    )
