"""Grids whose lowest point is any number: scale · code + offset, both of 16 bits for each group, as MLX has them.

Unlike those of groupwise.py they need not hold zero, so a group's minimum and maximum are both on them. Source:
mlx 0.32, ``affine_quantize`` in mlx/ops.cpp, which chooses scales and offsets otherwise, so that zero is on the grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mixprec.numerics import packing
from mixprec.numerics.formats import AffineFormat, Format
from mixprec.numerics.groupwise import Grid, Quantized, per_column, scale_dtype_of


class AffineQuantized(NamedTuple):
    """Weights (out, in) as ``scales · codes + offsets``: codes (out, in) uint8; scales, of any sign, and offsets (out,
    groups) in one type."""

    codes: Tensor
    scales: Tensor
    offsets: Tensor


def quantize_affine(weight: Tensor, format: AffineFormat, dtype: torch.dtype | None = None) -> AffineQuantized:
    """Grids from minimum to maximum of each group of ``weight`` (out, in), finite, and the nearest codes.

    Scales and offsets are rounded to ``dtype``, by default that of scales in a checkpoint, before any code is
    computed. A group of one value has scale 1 and codes 0.
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    stored = dtype or scale_dtype_of(weight.dtype)
    rows, columns = wide.shape
    size = format.width(columns)
    # A smaller last group is filled up with its last value, which changes neither extreme.
    filled = torch.cat([wide, wide[:, -1:].expand(rows, -columns % size)], 1).reshape(rows, -1, size)
    low, high = filled.amin(-1), filled.amax(-1)
    scales = ((high - low) / (2**format.bits - 1)).to(stored)
    scales, offsets = torch.where(scales == 0, torch.ones_like(scales), scales), low.to(stored)
    steps = wide - per_column(offsets.to(wide.dtype), columns, format)
    steps /= per_column(scales.to(wide.dtype), columns, format)
    return AffineQuantized(steps.round_().clamp_(0, 2**format.bits - 1).to(torch.uint8), scales, offsets)


def dequantize_affine(quantized: AffineQuantized, format: AffineFormat, dtype: torch.dtype) -> Tensor:
    """The weights (out, in) that the codes stand for, computed in float32 or wider, rounded once to ``dtype``."""
    codes, scales, offsets = quantized
    wide, columns = torch.promote_types(dtype, torch.float32), codes.shape[1]
    values = codes.to(wide)
    values *= per_column(scales.to(wide), columns, format)
    values += per_column(offsets.to(wide), columns, format)
    return values.to(dtype)


def of_grid(quantized: Quantized, format: Format) -> AffineQuantized | None:
    """The same codes with offsets −scale · zero point, rounded to the type of the scales.

    Those of symmetric grids are exact, as their zero point is a power of two. None where a zero point can't be got
    back from its offset (``to_grid``): it overflows, or nearly vanishes.
    """
    codes, (scales, zeros) = quantized
    half = 2 ** (format.bits - 1)
    if zeros is None:
        codes, zeros = (codes.to(torch.int16) + half).to(torch.uint8), torch.full_like(scales, half, dtype=torch.uint8)
    found = AffineQuantized(codes, scales, (-scales.double() * zeros.double()).to(scales.dtype))
    again = _zeros(found, format.bits)
    return found if again is not None and torch.equal(again, zeros) else None


def to_grid(quantized: AffineQuantized, bits: int) -> Quantized | None:
    """The grid of integers that ``of_grid`` made this from; symmetric where all zero points are the middle. None where
    it made it from none."""
    zeros, half = _zeros(quantized, bits), 2 ** (bits - 1)
    if zeros is None:
        return None
    codes, scales, _ = quantized
    if bool((zeros == half).all()):
        return Quantized((codes.to(torch.int16) - half).to(torch.int8), Grid(scales, None))
    return Quantized(codes, Grid(scales, zeros)) if bool((scales > 0).all()) else None


def _zeros(quantized: AffineQuantized, bits: int) -> Tensor | None:
    """Zero points (out, groups) uint8 whose offsets these are; None where they are others'."""
    _, scales, offsets = quantized
    zeros = (-offsets.double() / scales.double()).round()
    # A scale of 0 and an offset of infinity fail here too.
    fits = (scales != 0) & (zeros >= 0) & (zeros < 2**bits) & ((-scales.double() * zeros).to(offsets.dtype) == offsets)
    return zeros.to(torch.uint8) if bool(fits.all()) else None


def to_tensors(quantized: AffineQuantized, format: AffineFormat) -> dict[str, Tensor]:
    """Codes packed, all else as it is."""
    return quantized._asdict() | {"codes": packing.pack(quantized.codes, format.bits)}


def from_tensors(tensors: Mapping[str, Tensor], format: AffineFormat, shape: tuple[int, int]) -> AffineQuantized:
    """The inverse of ``to_tensors``, for a weight of this shape."""
    return AffineQuantized(**{**tensors, "codes": packing.unpack(tensors["codes"], format.bits, shape[1])})
