"""Group-wise integer quantization: fit a grid per group of input columns, round onto it, restore.

Symmetric grid: scale = 2 max|w| / (2^b - 1), codes -2^(b-1) … 2^(b-1) - 1, the one of compressed-tensors and
(shifted by 2^(b-1)) of GPTQ's released quantizer (arXiv 2210.17323). Asymmetric grid: from min(w, 0) to
max(w, 0) in 2^b - 1 steps with an integer zero point, so that zero itself is on the grid.

Scales are rounded to the 16-bit type that a checkpoint stores before any code is computed: the codes are
right for the scales that ship. Arithmetic is in float32 (float64 for float64 weights), rounding half to even.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mixprec.numerics.formats import WHOLE_ROW, Format


class Grid(NamedTuple):
    """``scales`` (out, groups), positive; ``zeros`` (out, groups) uint8, None for a symmetric grid."""

    scales: Tensor
    zeros: Tensor | None


class Quantized(NamedTuple):
    """``codes`` (out, in), int8 for a symmetric grid and uint8 for an asymmetric one; ``grid`` as fitted."""

    codes: Tensor
    grid: Grid


def scale_dtype_of(weight_dtype: torch.dtype) -> torch.dtype:
    """The 16-bit type of the scales of such weights in a checkpoint: their own, float16 for wider ones."""
    return weight_dtype if weight_dtype.itemsize == 2 else torch.float16


def fit(weight: Tensor, format: Format, scale_dtype: torch.dtype | None = None) -> Grid:
    """The grid that spans each group of ``weight`` (out, in), finite; scales by default in scale_dtype_of.

    A group of zeros, or one so small that its scale underflows in ``scale_dtype``, gets scale 1 (codes 0).
    """
    groups = _grouped(_wide(weight), format)
    steps = 2**format.bits - 1
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    span = 2 * torch.maximum(-low, high) if format.symmetric else high - low
    scales = (span / steps).to(scale_dtype or scale_dtype_of(weight.dtype))
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    if format.symmetric:
        return Grid(scales, None)
    return Grid(scales, torch.round(-low / scales.to(low.dtype)).clamp(0, steps).to(torch.uint8))


def encode(weight: Tensor, grid: Grid, format: Format) -> Tensor:
    """Codes (out, in) of the grid points nearest to ``weight`` (out, in); beyond the grid, its ends."""
    wide = _wide(weight)
    steps = torch.round(wide / _per_column(grid.scales.to(wide.dtype), wide.shape[1], format))
    if grid.zeros is None:
        half = 2 ** (format.bits - 1)
        return steps.clamp_(-half, half - 1).to(torch.int8)
    steps += _per_column(grid.zeros, wide.shape[1], format)
    return steps.clamp_(0, 2**format.bits - 1).to(torch.uint8)


def quantize(weight: Tensor, format: Format, scale_dtype: torch.dtype | None = None) -> Quantized:
    """Fit a grid to ``weight`` (out, in) and round to nearest."""
    grid = fit(weight, format, scale_dtype)
    return Quantized(encode(weight, grid, format), grid)


def dequantize(quantized: Quantized, format: Format, dtype: torch.dtype) -> Tensor:
    """The weights (out, in) that the codes stand for, rounded once to ``dtype``."""
    codes, grid = quantized
    steps = codes.to(torch.promote_types(dtype, torch.float32))
    columns = steps.shape[1]
    if grid.zeros is not None:
        steps -= _per_column(grid.zeros, columns, format)
    steps *= _per_column(grid.scales, columns, format)
    return steps.to(dtype)


def _wide(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _group_size(format: Format, columns: int) -> int:
    return columns if format.group_size == WHOLE_ROW else min(format.group_size, columns)


def _grouped(weight: Tensor, format: Format) -> Tensor:
    """(out, in) -> (out, groups, group size), a smaller last group filled up with zeros, no grid minds."""
    size = _group_size(format, weight.shape[1])
    filled = functional.pad(weight, (0, -weight.shape[1] % size))
    return filled.reshape(weight.shape[0], -1, size)


def _per_column(values: Tensor, columns: int, format: Format) -> Tensor:
    """(out, groups) -> (out, columns)."""
    return values.repeat_interleave(_group_size(format, columns), dim=1)[:, :columns]
