"""Group-wise quantization against a loop over groups in Python's own floats; properties of its grids."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mixprec.numerics import groupwise
from mixprec.numerics.formats import WHOLE_ROW, Format
from mixprec.numerics.groupwise import Grid, Quantized, Search, dequantize, encode, fit, quantize, scale_dtype_of

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
    # The 8 significant bits of bfloat16 hold multiples of a step up to 127 apart, no more.
    assume(dtype != torch.bfloat16 or format.bits < 8)
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


searches = st.builds(Search, st.sampled_from([0.3, 0.5, 0.8]), st.sampled_from([0.1, 0.25]), st.sampled_from([0, 1, 3]))


def loss(group: list[float], costs: list[float], scale: float, zero: int, format: Format) -> float:
    """What rounding ``group`` onto this grid costs."""
    lowest = 0 if not format.symmetric else -(2 ** (format.bits - 1))
    highest = lowest + 2**format.bits - 1
    codes = [min(max(round(w / scale) + zero, lowest), highest) for w in group]
    return sum(c * (w - (code - zero) * scale) ** 2 for w, c, code in zip(group, costs, codes, strict=True))


def least_loss(group: list[float], costs: list[float], format: Format, search: Search, dtype: torch.dtype) -> float:
    """The least over all grids that are tried, number by number."""
    steps, tried = 2**format.bits - 1, []
    parts = [1 - n * search.step for n in range(20)]
    if format.symmetric:
        parts.append(1 - 2.0**-format.bits)  # its lowest code is the largest weight
    for part in (part for part in parts if part > search.lowest - 1e-9):  # none below the lowest, whatever the step
        low, high = min(0.0, *group) * part, max(0.0, *group) * part
        scale = stored((2 * max(-low, high) if format.symmetric else high - low) / steps, dtype) or 1.0
        if format.symmetric and part < 1 and high > -low:
            scale = -scale
        zero = 0 if format.symmetric else min(max(round(-low / scale), 0), steps)
        tried.append((loss(group, costs, scale, zero, format), scale, zero))
    best, scale, zero = min(tried, key=lambda t: t[0])
    lowest = -(2 ** (format.bits - 1)) if format.symmetric else -zero
    for _ in range(search.refits):
        levels = [min(max(round(w / scale), lowest), lowest + steps) for w in group]
        across = sum(c * w * level for w, c, level in zip(group, costs, levels, strict=True))
        along = sum(c * level**2 for c, level in zip(costs, levels, strict=True))
        refit = stored(across / along, dtype) or 1.0 if across != 0 and along > 0 else scale
        if loss(group, costs, refit, zero, format) < best:
            best, scale = loss(group, costs, refit, zero, format), refit
    return best


@settings(max_examples=80, deadline=None)
@given(weights(), formats, searches, st.booleans(), st.integers(0, 99))
def test_the_search_finds_the_best_of_what_it_tries(
    weight: torch.Tensor, format: Format, search: Search, weighted: bool, seed: int
) -> None:
    columns = weight.shape[1]
    costs = torch.rand(columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    costs = costs if weighted else torch.ones_like(costs)
    grid = fit(weight, format, search=search, column_weights=costs if weighted else None)
    assert grid.scales.shape == (weight.shape[0], format.groups(columns))
    assert grid.scales.dtype == torch.float16
    assert (grid.zeros is None) == format.symmetric
    size = columns if format.group_size == WHOLE_ROW else format.group_size
    for row in range(weight.shape[0]):
        for group, start in enumerate(range(0, columns, size)):
            values, its = weight[row, start : start + size].tolist(), costs[start : start + size].tolist()
            zero = 0 if grid.zeros is None else int(grid.zeros[row, group])
            found = loss(values, its, float(grid.scales[row, group]), zero, format)
            # Equal up to the order of additions, which may decide between grids that are equally good.
            assert found == pytest.approx(least_loss(values, its, format, search, torch.float16), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("format", [Format(3, 8), Format(4, 8, symmetric=False), Format(2), Format(3, 7)])
def test_the_search_does_not_depend_on_its_pieces(format: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(150, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = fit(weight, format, search=Search())
    monkeypatch.setattr(groupwise, "_PIECE", 600)
    pieces = fit(weight, format, search=Search())
    assert torch.equal(whole.scales, pieces.scales)
    assert whole.zeros is None or (pieces.zeros is not None and torch.equal(whole.zeros, pieces.zeros))


def test_an_outlier_that_costs_nothing_is_clipped() -> None:
    weight = torch.cat([torch.linspace(-1, 1, 15), torch.tensor([1.9])])[None]
    costs = torch.ones(16)
    kept = fit(weight, Format(4), search=Search(), column_weights=costs)
    costs[-1] = 0
    clipped = fit(weight, Format(4), search=Search(), column_weights=costs)
    assert abs(clipped.scales.item()) < 0.6 * fit(weight, Format(4)).scales.item() < 0.61 * 1.9 * 2 / 15
    assert abs(clipped.scales.item()) < abs(kept.scales.item())


def test_the_lowest_code_of_a_searched_grid_is_on_the_side_of_the_largest_weight() -> None:
    weight = torch.tensor([[1.0, -0.75, 0.5, 0.25], [-1.0, 0.75, -0.5, -0.25]])
    grid = fit(weight, Format(3), search=Search())
    assert grid.scales.tolist() == [[-0.25], [0.25]]
    assert torch.equal(dequantize(Quantized(encode(weight, grid, Format(3)), grid), Format(3), torch.float32), weight)


def test_searched_grids_of_zeros_and_of_narrow_types() -> None:
    grid = fit(torch.zeros(2, 8), Format(3, 4), search=Search())
    assert bool((grid.scales == 1).all())
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    assert fit(weight.bfloat16(), Format(3, 8), search=Search()).scales.dtype == torch.bfloat16


def test_factors_of_a_search() -> None:
    assert Search(0.5, 0.25, 0).factors == (0.75, 0.5)
    assert Search(0.45, 0.05).factors[-1] == pytest.approx(0.45)
    assert Search(1.0).factors == Search(1.0).parts(Format(3)) == ()
    assert Search(0.5, 0.25, 0).parts(Format(3)) == (0.875, 0.75, 0.5)
    assert Search(0.5, 0.25, 0).parts(Format(3, symmetric=False)) == (0.75, 0.5)
