"""Grids with offsets: fitted as a loop fits them, and made of grids of integers and back without loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixprec.core.errors import UserError
from mixprec.numerics import affine, storage
from mixprec.numerics.affine import AffineQuantized
from mixprec.numerics.formats import AffineFormat, Format, parse_format
from mixprec.numerics.groupwise import Grid, Quantized, dequantize, quantize
from mixprec.numerics.tunable import TUNABLE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("text", ["w2g8_affine", "w3g12_affine", "w4_affine", "w8g32_affine"])
def test_a_loop_finds_the_same_codes(text: str, dtype: torch.dtype) -> None:
    format = parse_format(text)
    assert isinstance(format, AffineFormat) and str(format) == text
    weight = (torch.randn(6, 40, generator=torch.Generator().manual_seed(1)) + 0.3).to(dtype)
    weight[2, :32] = 0.25  # a group of one value
    found = affine.quantize_affine(weight, format)
    assert found.scales.dtype == found.offsets.dtype == (torch.float16 if dtype == torch.float32 else dtype)
    restored = affine.dequantize_affine(found, format, torch.float64)
    width = format.width(40)
    for row in range(6):
        for block, start in enumerate(range(0, 40, width)):
            values = weight[row, start : start + width].double().numpy()
            steps = 2**format.bits - 1
            scale, offset = float(found.scales[row, block]), float(found.offsets[row, block])
            assert scale == pytest.approx((values.max() - values.min()) / steps or 1, rel=2**-7)
            assert offset == pytest.approx(values.min(), rel=2**-7)
            codes = np.clip(np.round((values - offset) / scale), 0, steps)
            np.testing.assert_allclose(restored[row, start : start + width], codes * scale + offset, rtol=1e-12)


@given(
    bits=st.integers(2, 8), rows=st.integers(1, 5), groups=st.integers(1, 3), half=st.booleans(),
    symmetric=st.booleans(), exponent=st.integers(-12, 4), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_grids_of_integers_and_back(
    bits: int, rows: int, groups: int, half: bool, symmetric: bool, exponent: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    dtype = torch.float16 if half else torch.bfloat16
    scales = ((1 + torch.rand((rows, groups), generator=draw)) * 2.0**exponent).to(dtype)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if symmetric else (0, 2**bits)
    codes = torch.randint(low, high, (rows, groups * 4), generator=draw).to(torch.int8 if symmetric else torch.uint8)
    zeros = None if symmetric else torch.randint(0, 2**bits, (rows, groups), generator=draw, dtype=torch.uint8)
    grid, format = Quantized(codes, Grid(scales, zeros)), Format(bits, 4, symmetric)
    made = affine.of_grid(grid, format)
    if made is None:  # a zero point of 8 bits times a scale doesn't fit into the 8 bits of a bfloat16
        assert bits == 8 and not half and not symmetric
        return
    values = affine.dequantize_affine(made, AffineFormat(bits, 4), torch.float64)
    expected = dequantize(grid, format, torch.float64)
    if symmetric:
        assert torch.equal(values, expected)
    # An offset of 16 bits is off by half a unit in its last place at most: 11 or 8 bits of it count.
    limit = (expected.abs().max() + (scales.double() * 2**bits).max()) * 2.0 ** -(11 if half else 8)
    assert (values - expected).abs().max() <= limit
    again = affine.to_grid(made, bits)
    assert again is not None
    middle = symmetric or bool((zeros == 2 ** (bits - 1)).all())
    assert (again.grid.zeros is None) == middle
    assert torch.equal(dequantize(again, Format(bits, 4, middle), torch.float64), expected)


def test_offsets_of_no_zero_points() -> None:
    codes, one = torch.zeros(1, 4, dtype=torch.uint8), torch.tensor([[0.5]], dtype=torch.float16)
    for scale, offset in ((one, one), (-one, one), (one, -one / 3), (one, -one * 16), (one, one * torch.inf)):
        assert affine.to_grid(AffineQuantized(codes, scale, offset), 4) is None
    assert affine.to_grid(AffineQuantized(codes, one, -one * 15), 4) is not None
    huge = torch.tensor([[6e4]], dtype=torch.float16)
    assert (
        affine.of_grid(Quantized(codes, Grid(huge, torch.tensor([[2]], dtype=torch.uint8))), Format(4, 4, False))
        is None
    )


def test_a_kind_of_format_like_the_others() -> None:
    format, weight = AffineFormat(3, 8), torch.randn(5, 20, dtype=torch.bfloat16)
    quantized = affine.quantize_affine(weight, format)
    tensors = storage.stored(quantized, format)
    restored = affine.dequantize_affine(quantized, format, torch.bfloat16)
    assert torch.equal(storage.restored(tensors, format, (5, 20), torch.bfloat16), restored)
    halves = storage.split(quantized, [2, 3])
    assert torch.equal(storage.dequantize(halves[1], format, torch.bfloat16), restored[2:])
    taken = format.takes(5, 20)
    assert (taken.codes, taken.scales, taken.zeros) == (300, 5 * 3 * 16, 5 * 3 * 16)
    row = TUNABLE[AffineFormat]
    numbers = {name: number.start.float() for name, number in row.numbers(quantized, format).items()}
    fixed = row.fixed(quantized, format)
    assert torch.equal(row.weight(fixed, numbers, torch.bfloat16), restored)
    moved = row.put(quantized, {"scales": quantized.scales * 2, "offsets": quantized.offsets})
    assert torch.equal(moved.scales, quantized.scales * 2) and torch.equal(moved.codes, quantized.codes)


def test_its_error_is_less_than_that_of_grids_that_hold_zero() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(2)) + 5
    spans = affine.dequantize_affine(
        affine.quantize_affine(weight, AffineFormat(4, 32)), AffineFormat(4, 32), torch.float32
    )
    zero = dequantize(quantize(weight, Format(4, 32, False)), Format(4, 32, False), torch.float32)
    assert (spans - weight).norm() < 0.8 * (zero - weight).norm()


def test_code_books_have_offsets_anyway() -> None:
    with pytest.raises(UserError, match="code books have offsets anyway, leave out _affine"):
        parse_format("any4g64_affine")
