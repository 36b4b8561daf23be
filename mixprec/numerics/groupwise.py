"""Group-wise integer quantization: fit a grid per group of input columns, round onto it, restore.

Symmetric grid: scale = 2 max|w| / (2^b - 1), codes -2^(b-1) … 2^(b-1) - 1, the one of compressed-tensors and
(shifted by 2^(b-1)) of GPTQ's released quantizer (arXiv 2210.17323). Asymmetric grid: from min(w, 0) to
max(w, 0) in 2^b - 1 steps with an integer zero point, so that zero itself is on the grid.

Scales are rounded to the 16-bit type that a checkpoint stores before any code is computed: the codes are
right for the scales that ship. Arithmetic is in float32 (float64 for float64 weights), rounding half to even.

A grid may also be searched (``Search``): one narrower than its group clips the outermost weights and has finer steps
for all others. It wins where the squared rounding error, columns weighted by what their errors cost, is less with it.
A symmetric grid has one code more below zero than above; a searched one turns that code to the side of the group's
largest weight, by a negative scale where that weight is positive (as llama.cpp's and AutoRound's quantizers do).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mixprec.numerics import packing
from mixprec.numerics.formats import CodebookFormat, Format, GridFormat
from mixprec.numerics.kernels import operation

#: Numbers of a piece on which grids are searched at once: it and two buffers of its size take a few megabytes.
_PIECE = 2**18


class Grid(NamedTuple):
    """``scales`` (out, groups), not 0, positive beside zero points; ``zeros`` (out, groups) uint8, None for a symmetric
    grid."""

    scales: Tensor
    zeros: Tensor | None


class Quantized(NamedTuple):
    """``codes`` (out, in), int8 for a symmetric grid and uint8 for an asymmetric one; ``grid`` as fitted."""

    codes: Tensor
    grid: Grid


class Search(NamedTuple):
    """What is tried besides the grid that spans the group, which stays where nothing is better.

    Grids that span ``step``, 2 ``step``, … less of it, down to the part ``lowest``, and of symmetric ones that whose
    lowest code is the largest weight; then ``refits`` times the scale that is best, by least squares, for the codes
    that the best grid so far gives.
    """

    lowest: float = 0.5
    step: float = 0.1
    refits: int = 1

    @property
    def factors(self) -> tuple[float, ...]:
        """Parts of the span that are tried besides 1, falling."""
        return tuple(1 - self.step * n for n in range(1, int((1 - self.lowest) / self.step + 1e-6) + 1))

    def parts(self, format: Format) -> tuple[float, ...]:
        """``factors``, and before them, for a symmetric format, the part of a span that ends at its lowest code."""
        full = 1 - 2.0**-format.bits
        return (full, *self.factors) if format.symmetric and full >= self.lowest else self.factors


def scale_dtype_of(weight_dtype: torch.dtype) -> torch.dtype:
    """The 16-bit type of the scales of such weights in a checkpoint: their own, float16 for wider ones."""
    return weight_dtype if weight_dtype.itemsize == 2 else torch.float16


@operation
def fit(
    weight: Tensor,
    format: Format,
    scale_dtype: torch.dtype | None = None,
    *,
    search: Search | None = None,
    column_weights: Tensor | None = None,
) -> Grid:
    """The grid that spans each group of ``weight`` (out, in), finite; scales by default in scale_dtype_of.

    ``search``: the grid of least squared error instead, among those that it tries; ``column_weights`` (in,), not
    negative: what an error in a column counts, 1 by default.
    A group of zeros, or one so small that its scale underflows in ``scale_dtype``, gets scale 1 (codes 0).
    """
    groups = _grouped(_wide(weight), format)
    dtype = scale_dtype or scale_dtype_of(weight.dtype)
    if search is None:
        return Grid(*_span(groups.amin(-1), groups.amax(-1), format, dtype))
    costs = _wide(torch.ones_like(weight[0]) if column_weights is None else column_weights).to(groups)
    return _search(groups, _grouped(costs[None], format)[0], format, dtype, search)


@operation
def encode(weight: Tensor, grid: Grid, format: Format) -> Tensor:
    """Codes (out, in) of the grid points nearest to ``weight`` (out, in); beyond the grid, its ends."""
    wide = _wide(weight)
    steps = torch.round(wide / per_column(grid.scales.to(wide.dtype), wide.shape[1], format))
    if grid.zeros is None:
        half = 2 ** (format.bits - 1)
        return steps.clamp_(-half, half - 1).to(torch.int8)
    steps += per_column(grid.zeros, wide.shape[1], format)
    return steps.clamp_(0, 2**format.bits - 1).to(torch.uint8)


def quantize(weight: Tensor, format: Format, scale_dtype: torch.dtype | None = None) -> Quantized:
    """Fit a grid to ``weight`` (out, in) and round to nearest."""
    grid = fit(weight, format, scale_dtype)
    return Quantized(encode(weight, grid, format), grid)


@operation
def dequantize(quantized: Quantized, format: Format, dtype: torch.dtype) -> Tensor:
    """The weights (out, in) that the codes stand for, rounded once to ``dtype``."""
    codes, grid = quantized
    steps = codes.to(torch.promote_types(dtype, torch.float32))
    columns = steps.shape[1]
    if grid.zeros is not None:
        steps -= per_column(grid.zeros, columns, format)
    steps *= per_column(grid.scales, columns, format)
    return steps.to(dtype)


def to_tensors(quantized: Quantized, format: Format) -> dict[str, Tensor]:
    """Codes and zero points packed, scales as they are; codes of a symmetric grid are shifted to be unsigned."""
    codes, (scales, zeros) = quantized
    if zeros is None:
        return {"codes": packing.pack(codes.to(torch.int16) + 2 ** (format.bits - 1), format.bits), "scales": scales}
    packed = packing.pack(zeros.reshape(1, -1), format.bits)
    return {"codes": packing.pack(codes, format.bits), "scales": scales, "zeros": packed}


def from_tensors(tensors: Mapping[str, Tensor], format: Format, shape: tuple[int, int]) -> Quantized:
    """The inverse of ``to_tensors``, for a weight of this shape."""
    codes, scales = packing.unpack(tensors["codes"], format.bits, shape[1]), tensors["scales"]
    if format.symmetric:
        return Quantized((codes.to(torch.int16) - 2 ** (format.bits - 1)).to(torch.int8), Grid(scales, None))
    zeros = packing.unpack(tensors["zeros"], format.bits, scales.numel()).view(scales.shape)
    return Quantized(codes, Grid(scales, zeros))


def narrowed(
    low: Tensor, high: Tensor, format: Format, scale_dtype: torch.dtype, part: float
) -> tuple[Tensor, Tensor | None]:
    """Scales and zeros of grids over ``part`` of what groups with these extremes, and 0, take up; the lowest code of a
    symmetric one lies on the side of the larger extreme."""
    scales, zeros = _span(low, high, format, scale_dtype, part)
    return torch.where(high > -low, -scales, scales) if format.symmetric else scales, zeros


def _span(
    low: Tensor, high: Tensor, format: Format, scale_dtype: torch.dtype, part: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    steps = 2**format.bits - 1
    low, high = low.clamp(max=0) * part, high.clamp(min=0) * part
    span = 2 * torch.maximum(-low, high) if format.symmetric else high - low
    scales = _usable((span / steps).to(scale_dtype))
    if format.symmetric:
        return scales, None
    return scales, torch.round(-low / scales.to(low.dtype)).clamp(0, steps).to(torch.uint8)


def _usable(scales: Tensor) -> Tensor:
    return torch.where(scales == 0, torch.ones_like(scales), scales)


def _search(groups: Tensor, costs: Tensor, format: Format, scale_dtype: torch.dtype, search: Search) -> Grid:
    """The best grids for ``groups`` (out, groups, size) with ``costs`` (groups, size), piece by piece.

    Pieces are laid out (groups, size, out): rows of one group are side by side, whatever its size.
    """
    rows, count, size = groups.shape
    scales = groups.new_empty((rows, count), dtype=scale_dtype)
    zeros = None if format.symmetric else groups.new_empty((rows, count), dtype=torch.uint8)
    height = min(rows, max(64, _PIECE // size))
    width = max(1, _PIECE // (size * height))
    for top in range(0, rows, height):
        for left in range(0, count, width):
            here = (slice(top, top + height), slice(left, left + width))
            piece = groups[here].permute(1, 2, 0).contiguous()
            best = _search_piece(piece, costs[here[1], None], format, scale_dtype, search)
            scales[here] = best.scales[:, 0].T
            if zeros is not None and best.zeros is not None:
                zeros[here] = best.zeros[:, 0].T
    return Grid(scales, zeros)


def _search_piece(piece: Tensor, costs: Tensor, format: Format, scale_dtype: torch.dtype, search: Search) -> Grid:
    """``piece`` (groups, size, out), ``costs`` (groups, 1, size) -> Grid of (groups, 1, out)."""
    low, high = piece.amin(1, keepdim=True), piece.amax(1, keepdim=True)
    levels, error = torch.empty_like(piece), torch.empty_like(piece)

    def loss_of(scales: Tensor, zeros: Tensor | None) -> Tensor:
        wide = scales.to(piece.dtype)
        torch.div(piece, wide, out=levels).round_().clamp_(*level_range(zeros, format, piece.dtype))
        torch.addcmul(piece, levels, wide, value=-1, out=error)
        return costs @ error.square_()

    scales, zeros = _span(low, high, format, scale_dtype)
    least = loss_of(scales, zeros)
    for part in search.parts(format):
        tried, its_zeros = narrowed(low, high, format, scale_dtype, part)
        loss = loss_of(tried, its_zeros)
        better = loss < least
        least, scales = torch.where(better, loss, least), torch.where(better, tried, scales)
        zeros = None if zeros is None or its_zeros is None else torch.where(better, its_zeros, zeros)
    for _ in range(search.refits):
        loss_of(scales, zeros)  # for the levels that belong to the best so far
        across, along = costs @ (piece * levels), costs @ levels.square()
        fits = (across != 0) & (along > 0)  # across has the scale's sign
        tried = _usable(torch.where(fits, across / along, scales.to(piece.dtype)).to(scale_dtype))
        loss = loss_of(tried, zeros)
        better = loss < least
        least, scales = torch.where(better, loss, least), torch.where(better, tried, scales)
    return Grid(scales, zeros)


def level_range(zeros: Tensor | None, format: Format, dtype: torch.dtype) -> tuple[Tensor, Tensor] | tuple[int, int]:
    """The lowest and the highest whole number of steps from zero that a grid with these ``zeros`` reaches."""
    if zeros is None:
        return -(2 ** (format.bits - 1)), 2 ** (format.bits - 1) - 1
    lowest = -zeros.to(dtype)
    return lowest, lowest + (2**format.bits - 1)


def _wide(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _grouped(weight: Tensor, format: Format) -> Tensor:
    """(out, in) -> (out, groups, group size), a smaller last group filled up with zeros, no grid minds."""
    size = format.width(weight.shape[1])
    filled = functional.pad(weight, (0, -weight.shape[1] % size))
    return filled.reshape(weight.shape[0], -1, size)


def per_column(values: Tensor, columns: int, format: GridFormat | CodebookFormat) -> Tensor:
    """(out, groups) -> (out, columns): what holds for a group, for each of its columns."""
    return values.repeat_interleave(format.width(columns), dim=1)[:, :columns]
