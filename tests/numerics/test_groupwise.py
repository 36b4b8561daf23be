"""Group-wise quantization against a loop over groups in Python's own floats; properties of its grids."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mixprec.numerics.formats import WHOLE_ROW, Format
from mixprec.numerics.groupwise import Grid, Quantized, dequantize, encode, fit, quantize, scale_dtype_of

formats = st.builds(Format, st.integers(2, 8), st.sampled_from([WHOLE_ROW, 1, 2, 3, 4, 7, 8, 64]), st.booleans())
# Away from float16's subnormals, whose scales are too coarse for the bounds; these are tested on their own.
numbers = st.one_of(st.just(0.0), st.floats(0.125, 100, width=32), st.floats(-100, -0.125, width=32))


@st.composite
def weights(draw: st.DrawFn) -> torch.Tensor:
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 20)))
    return torch.from_numpy(draw(arrays.arrays(np.float64, shape, elements=numbers)))


def stored(value: float, dtype: torch.dtype) -> float:
    return torch.tensor(value, dtype=torch.float64).to(dtype).item()


def reference(weight: torch.Tensor, format: Format, dtype: torch.dtype) -> tuple[list, list, list, list]:
    """Codes, scales, zeros and restored weights, group by group, number by number, in double precision."""
    columns = weight.shape[1]
    size = columns if format.group_size == WHOLE_ROW else format.group_size
    steps = 2**format.bits - 1
    codes, scales, zeros, restored = [], [], [], []
    for row in weight.tolist():
        for start in range(0, columns, size):
            group = row[start : start + size]
            if format.symmetric:
                scale = stored(2 * max(abs(w) for w in group) / steps, dtype) or 1.0
                zero, lowest = 0, -(2 ** (format.bits - 1))
            else:
                low, high = min(0.0, *group), max(0.0, *group)
                scale = stored((high - low) / steps, dtype) or 1.0
                zero, lowest = min(max(round(-low / scale), 0), steps), 0
            found = [min(max(round(w / scale) + zero, lowest), lowest + steps) for w in group]
            codes += found
            scales.append(scale)
            zeros.append(zero)
            restored += [(code - zero) * scale for code in found]
    return codes, scales, zeros, restored


@settings(max_examples=300)
@given(weights(), formats, st.sampled_from([torch.float16, torch.bfloat16]))
def test_equals_the_reference(weight: torch.Tensor, format: Format, dtype: torch.dtype) -> None:
    codes, scales, zeros, restored = reference(weight, format, dtype)
    quantized = quantize(weight, format, dtype)
    grid = quantized.grid
    assert grid.scales.dtype == dtype
    assert grid.scales.shape == (weight.shape[0], format.groups(weight.shape[1]))
    assert quantized.codes.shape == weight.shape
    assert quantized.codes.flatten().tolist() == codes
    assert grid.scales.flatten().tolist() == scales
    if format.symmetric:
        assert grid.zeros is None
        assert quantized.codes.dtype == torch.int8
    else:
        assert grid.zeros is not None
        assert quantized.codes.dtype == grid.zeros.dtype == torch.uint8
        assert grid.zeros.flatten().tolist() == zeros
    assert dequantize(quantized, format, torch.float64).flatten().tolist() == restored


@given(weights(), formats, st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_narrow_weights_round_as_in_double_precision(weight: torch.Tensor, format: Format, dtype: torch.dtype) -> None:
    narrow = weight.to(dtype)
    quantized = quantize(narrow, format)
    grid = quantized.grid
    assert grid.scales.dtype == scale_dtype_of(dtype)
    # Where float32 and float64 disagree, a weight lies half-way between two codes.
    exact = encode(narrow.double(), grid, format).int()
    steps = narrow.double() / expanded(grid.scales.double(), narrow, format)
    halfway = (steps - steps.floor() - 0.5).abs() < 1e-5
    assert torch.equal(quantized.codes.int()[~halfway], exact[~halfway])
    assert int((quantized.codes.int() - exact).abs().max()) <= 1


def expanded(values: torch.Tensor, like: torch.Tensor, format: Format) -> torch.Tensor:
    size = like.shape[1] if format.group_size == WHOLE_ROW else format.group_size
    return torch.stack([values[:, column // size] for column in range(like.shape[1])], dim=1)


@given(weights(), formats)
def test_error_is_half_a_step(weight: torch.Tensor, format: Format) -> None:
    quantized = quantize(weight, format)
    scales = expanded(quantized.grid.scales.double(), weight, format)
    error = (weight - dequantize(quantized, format, torch.float64)).abs()
    # Both kinds of grid end at most half a step before the outermost weight; rounding the scale to 16 bits
    # (relative error 2^-11) moves that end by up to 2^bits times as much.
    assert bool((error <= scales * (0.5 + 2.0**format.bits * 2.0**-11)).all())


@given(weights(), formats, st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_restored_weights_have_the_same_codes_on_the_same_grid(
    weight: torch.Tensor, format: Format, dtype: torch.dtype
) -> None:
    quantized = quantize(weight.to(dtype), format)
    restored = dequantize(quantized, format, dtype)
    assert torch.equal(encode(restored, quantized.grid, format), quantized.codes)


@given(weights(), formats)
def test_codes_rise_with_the_weights(weight: torch.Tensor, format: Format) -> None:
    ordered = weight.sort(dim=1).values
    codes = encode(ordered, fit(ordered[:, -1:], format), Format(format.bits, WHOLE_ROW, format.symmetric))
    assert bool((codes.int().diff(dim=1) >= 0).all())


@given(weights(), formats)
def test_zero_stays_zero(weight: torch.Tensor, format: Format) -> None:
    restored = dequantize(quantize(weight, format), format, torch.float64)
    assert bool((restored[weight == 0] == 0).all())


@given(weights(), formats)
def test_sign_is_never_turned(weight: torch.Tensor, format: Format) -> None:
    restored = dequantize(quantize(weight, format), format, torch.float64)
    assert bool((restored * weight >= 0).all())


@given(weights(), formats)
def test_groups_are_independent(weight: torch.Tensor, format: Format) -> None:
    assume(format.group_size != WHOLE_ROW and weight.shape[1] > format.group_size)
    whole = quantize(weight, format)
    last = weight.shape[1] - (weight.shape[1] - 1) % format.group_size - 1
    alone = quantize(weight[:, last:], format)
    assert torch.equal(whole.codes[:, last:], alone.codes)
    assert torch.equal(whole.grid.scales[:, -1:], alone.grid.scales)


def test_groups_larger_than_a_row_are_rows() -> None:
    weight = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    rows, huge = quantize(weight, Format(3)), quantize(weight, Format(3, 10**12))
    assert torch.equal(rows.codes, huge.codes)
    assert torch.equal(rows.grid.scales, huge.grid.scales)


def test_a_hand_computed_symmetric_group() -> None:
    # max|w| = 3.5, so the scale is 2 * 3.5 / 7 = 1; 3.5 rounds to 4, beyond the end at 3.
    codes = quantize(torch.tensor([[3.5, -3.5, 0.4, -0.6, 2.5, 1.5]]), Format(3)).codes
    assert codes.tolist() == [[3, -4, 0, -1, 2, 2]]


def test_a_hand_computed_asymmetric_group() -> None:
    # From -1 to 6 in 7 steps of 1; zero is code 1.
    codes, grid = quantize(torch.tensor([[-1.0, 6.0, 0.0, 2.2]]), Format(3, symmetric=False))
    assert grid.zeros is not None
    assert (codes.tolist(), grid.scales.item(), grid.zeros.item()) == ([[0, 7, 1, 3]], 1.0, 1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_each_further_bit_helps(symmetric: bool, dtype: torch.dtype) -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
    errors = []
    for bits in range(2, 9):
        format = Format(bits, 64, symmetric)
        errors.append((weight.double() - dequantize(quantize(weight, format), format, torch.float64)).norm())
    assert all(after < 0.6 * before for before, after in pairwise(errors))


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=9),
    st.sampled_from([1.0, 1e-4, 1e-6, 1e-7, 1e-20, 1e-40, 0.0]),
    formats,
    st.sampled_from([torch.float16, torch.bfloat16]),
)
def test_tiny_groups_stay_finite_and_no_larger(
    row: list[float], size: float, format: Format, scale_dtype: torch.dtype
) -> None:
    weight = torch.tensor([row]) * size
    grid = fit(weight, format, scale_dtype)
    restored = dequantize(Quantized(encode(weight, grid, format), grid), format, torch.float32)
    assert bool((grid.scales > 0).all())
    assert bool(torch.isfinite(restored).all())
    # An asymmetric grid's end may lie a step beyond the weights; scales are at least 2^-24 where not 0.
    assert restored.abs().max() <= 2.5 * weight.abs().max() + 2.0**-24


@pytest.mark.parametrize("text_format", [Format(3, 4), Format(3, 4, symmetric=False), Format(8)])
def test_zeros_get_scale_one_and_code_zero(text_format: Format) -> None:
    codes, grid = quantize(torch.zeros(2, 8), text_format)
    assert int(codes.count_nonzero()) == 0
    assert bool((grid.scales == 1).all())
    assert grid.zeros is None or int(grid.zeros.count_nonzero()) == 0


def test_eight_bits_asymmetric_use_all_codes() -> None:
    codes, grid = quantize(torch.arange(256.0).unsqueeze(0), Format(8, symmetric=False))
    assert codes.flatten().tolist() == list(range(256))
    assert dequantize(Quantized(codes, Grid(grid.scales, grid.zeros)), Format(8), torch.float32)[0, 255] == 255


def test_scales_are_stored_in_the_weights_type_or_float16() -> None:
    weight = torch.ones(1, 4)
    for dtype, expected in [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float32, torch.float16),
        (torch.float64, torch.float16),
    ]:
        assert fit(weight.to(dtype), Format(3)).scales.dtype == expected
