"""any4, any3, any2: a learned code book for each row (arXiv 2507.04610). Needs no data, is better with it.

Groups of a row are brought to −1 … 1 by a scale and an offset, and 2^b values are learned for the whole row by
k-means (§3). The paper's objective is the error of the output, (Σ_j (w_ij − ŵ_ij) x_j)², its cross terms left out:
so value j weighs scale² · E[x_j²]. The released code weighs by scale · E|x_j|, neither of them squared; which
measure of the inputs is taken is the caller's choice.

Each row takes the better of two scalings: from minimum to maximum as in the paper, or symmetric with offsets 0. The
former is better on nearly all rows of trained weights, the latter where tails are so heavy that zero, which is
where the weights are, would lie elsewhere in every group. It also is that of NF4 and of uniform grids, whose levels
are among the candidates: no row is worse than theirs, but for the rounding of scales and levels to 16 bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mixprec.compress.solving import Solved, Solver, Task
from mixprec.numerics.codebook import CodebookQuantized, encode_codebook, kmeans, normal_float
from mixprec.numerics.formats import CodebookFormat
from mixprec.numerics.groupwise import per_column, scale_dtype_of

#: Rows are learned in chunks of at most so many rows and weights, which bounds memory: about 100 MB.
_CHUNK_ROWS, _CHUNK_WEIGHTS = 256, 2**19


class _Scaling(NamedTuple):
    """scales and offsets (rows, groups) in 16 bits."""

    scales: Tensor
    offsets: Tensor


def anyk(
    weight: Tensor, column_weights: Tensor | None, format: CodebookFormat, scale_dtype: torch.dtype | None = None
) -> CodebookQuantized:
    """Codes, code books, scales and offsets that nearly minimise Σ_j c_j (w_ij − ŵ_ij)² in every row i.

    weight (out, in), finite. column_weights (in,): the c_j ≥ 0, such as E[x_j²] of the inputs, the diagonal of their
    second moments; None, or all of them 0: equal ones. Everything but codes is by default in scale_dtype_of.

    Raises ValueError for column weights of another shape, negative or not finite.
    """
    columns = _checked(column_weights, weight)
    dtype = scale_dtype or scale_dtype_of(weight.dtype)
    rows = max(1, min(_CHUNK_ROWS, _CHUNK_WEIGHTS // weight.shape[1]))
    parts = [_learn(part, columns, format, dtype) for part in weight.split(rows)]
    return CodebookQuantized(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _checked(column_weights: Tensor | None, weight: Tensor) -> Tensor:
    wide = torch.promote_types(weight.dtype, torch.float32)
    equal = torch.ones(weight.shape[1], dtype=wide, device=weight.device)
    if column_weights is None:
        return equal
    if column_weights.shape != equal.shape:
        raise ValueError(f"column weights {tuple(column_weights.shape)} for a weight {tuple(weight.shape)}")
    if not (torch.isfinite(column_weights).all() and (column_weights >= 0).all()):
        raise ValueError("column weights must be finite and not negative")
    return column_weights.to(equal) if (column_weights > 0).any() else equal


def _learn(weight: Tensor, columns: Tensor, format: CodebookFormat, dtype: torch.dtype) -> CodebookQuantized:
    """The better scaling for each row of ``weight`` (rows, in) with the code book learned for it."""
    wide = weight.to(columns.dtype)
    steps = 2**format.bits - 1
    normal = normal_float(format.bits)
    # From the end that numerics.groupwise's symmetric grid starts at: its largest code stays half a step below 1.
    uniform = (torch.arange(steps + 1, dtype=torch.float64) - 2 ** (format.bits - 1)) * 2 / steps
    even = torch.linspace(-1, 1, steps + 1, dtype=torch.float64)
    scalings = [_from_minimum_to_maximum(wide, format, dtype), _symmetric(wide, format, dtype)]
    fits = []
    for scaling, grids in zip(scalings, ([even, normal], [uniform, normal]), strict=True):
        importance = columns * per_column(scaling.scales, wide.shape[1], format).to(wide).square()
        fits.append(kmeans(_scaled(wide, scaling, format), importance, steps + 1, dtype, grids))
    second = (fits[1].error < fits[0].error)[:, None]
    scales, offsets = (torch.where(second, b, a) for a, b in zip(*scalings, strict=True))
    codebook = torch.where(second, fits[1].centres, fits[0].centres)
    codes = encode_codebook(_scaled(wide, _Scaling(scales, offsets), format), codebook)
    return CodebookQuantized(codes, codebook, scales, offsets)


def _from_minimum_to_maximum(weight: Tensor, format: CodebookFormat, dtype: torch.dtype) -> _Scaling:
    """Offset in the middle of each group of ``weight`` (rows, in), scale from there, as rounded, to its far end."""
    groups = _grouped(weight, format)
    low, high = groups.amin(-1), groups.amax(-1)
    offsets = ((low + high) / 2).to(dtype)
    middle = offsets.to(weight.dtype)
    return _Scaling(torch.maximum(high - middle, middle - low).to(dtype), offsets)


def _symmetric(weight: Tensor, format: CodebookFormat, dtype: torch.dtype) -> _Scaling:
    """Scale max|w| of each group of ``weight`` (rows, in), offset 0."""
    scales = _grouped(weight, format).abs().amax(-1).to(dtype)
    return _Scaling(scales, torch.zeros_like(scales))


def _scaled(weight: Tensor, scaling: _Scaling, format: CodebookFormat) -> Tensor:
    """(weight − offset) / scale, 0 in groups whose scale is 0."""
    scales, offsets = (per_column(values.to(weight.dtype), weight.shape[1], format) for values in scaling)
    return torch.where(scales > 0, (weight - offsets) / scales, torch.zeros_like(weight))


def _grouped(weight: Tensor, format: CodebookFormat) -> Tensor:
    """(rows, in) -> (rows, groups, group size); a smaller last group repeats its last weight, no extreme minds."""
    columns = weight.shape[1]
    size = format.width(columns)
    filled = torch.cat([weight, weight[:, -1:].expand(-1, -columns % size)], 1)
    return filled.reshape(len(weight), -1, size)


def _solve(task: Task) -> Solved:
    format = task.treatment.format
    assert isinstance(format, CodebookFormat)  # Treatment.problem sees to it
    return task.rounded(anyk(task.weight, task.inputs.statistics.hessian.diagonal(), format), format)


SOLVER = Solver(_solve)
