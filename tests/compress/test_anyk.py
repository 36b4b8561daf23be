"""any4 and any3: never worse than NF4 and uniform grids, good where activations are, exact where that is possible."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixprec.compress.anyk import anyk
from mixprec.models.load import LoadedModel
from mixprec.numerics import groupwise
from mixprec.numerics.codebook import dequantize_codebook, encode_codebook, kmeans, normal_float
from mixprec.numerics.formats import WHOLE_ROW, CodebookFormat, Format

codebook_formats = st.builds(CodebookFormat, st.integers(2, 4), st.sampled_from([WHOLE_ROW, 1, 5, 16, 64]))


def matrix(rows: int, columns: int, tail: float, seed: int) -> Tensor:
    """Normal values to the power 1 + tail, with their sign; no two groups alike."""
    normal = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return 0.05 * normal.sign() * normal.abs() ** (1 + tail)


def restored(weight: Tensor, format: CodebookFormat, column_weights: Tensor | None = None) -> Tensor:
    return dequantize_codebook(anyk(weight, column_weights, format), format, torch.float32)


def normal_float_restored(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """Each group divided by its largest magnitude, in float32, and rounded to NormalFloat's nearest level."""
    levels, done = normal_float(bits).float(), torch.empty_like(weight)
    for start in range(0, weight.shape[1], group_size):
        group = weight[:, start : start + group_size]
        largest = group.abs().amax(1, keepdim=True).clamp(min=1e-30)
        codes = torch.bucketize(group / largest, (levels[1:] + levels[:-1]) / 2)
        done[:, start : start + group_size] = levels[codes] * largest
    return done


def uniform_restored(weight: Tensor, format: Format) -> Tensor:
    return groupwise.dequantize(groupwise.quantize(weight, format), format, torch.float32)


def row_errors(weight: Tensor, other: Tensor, column_weights: Tensor | None = None) -> Tensor:
    squares = (weight.double() - other.double()).square()
    return (squares if column_weights is None else squares * column_weights.double()).sum(1)


def worst_ratio(weight: Tensor, bits: int, group_size: int = 64) -> float:
    """Largest ratio of our error, squared, to NormalFloat's and to both uniform grids'."""
    ours = row_errors(weight, restored(weight, CodebookFormat(bits, group_size))).sum()
    others = [
        normal_float_restored(weight, bits, group_size),
        uniform_restored(weight, Format(bits, group_size)),
        uniform_restored(weight, Format(bits, group_size, symmetric=False)),
    ]
    return max(float(ours / row_errors(weight, other).sum()) for other in others)


@given(codebook_formats, st.integers(1, 4), st.integers(1, 70), st.integers(0, 10**6), st.floats(0, 3))
@settings(max_examples=60, deadline=None)
def test_shapes_types_and_range(format: CodebookFormat, rows: int, columns: int, seed: int, tail: float) -> None:
    weight = matrix(rows, columns, tail, seed)
    found = anyk(weight, None, format)
    groups = format.groups(columns)
    assert found.codes.shape == weight.shape
    assert found.codes.dtype == torch.uint8
    assert int(found.codes.max()) < 2**format.bits
    assert found.codebook.shape == (rows, 2**format.bits)
    assert (found.codebook.diff(dim=1) >= 0).all()
    assert found.scales.shape == found.offsets.shape == (rows, groups)
    assert {found.codebook.dtype, found.scales.dtype, found.offsets.dtype} == {torch.float16}
    values = dequantize_codebook(found, format, torch.float32)
    # Nothing that is restored is larger than the largest weight of its row, but for the rounding to 16 bits.
    largest = weight.abs().amax(1, keepdim=True)
    assert (values.abs() <= 1.002 * largest + 1e-6).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_every_weight_has_the_nearest_of_its_values(bits: int) -> None:
    format, weight = CodebookFormat(bits, 16), matrix(3, 40, 1.0, seed=1)
    codes, codebook, scales, offsets = anyk(weight, None, format)
    for row in range(3):
        for column in range(40):
            group = column // 16
            choices = scales[row, group].float() * codebook[row].float() + offsets[row, group].float()
            errors = (choices - weight[row, column]).abs()
            assert errors[int(codes[row, column])] <= errors.min() + 1e-6 * scales[row, group]


@given(st.integers(2, 4), st.sampled_from([16, 32, 100]), st.integers(0, 10**6), st.floats(0, 4))
@settings(max_examples=40, deadline=None)
def test_no_row_is_worse_than_normal_float_or_uniform(bits: int, group_size: int, seed: int, tail: float) -> None:
    """From normal to extremely heavy tails. 1.01: their scales are not rounded to the same numbers as ours."""
    weight = matrix(4, 100, tail, seed)
    ours = row_errors(weight, restored(weight, CodebookFormat(bits, group_size)))
    for other in (
        normal_float_restored(weight, bits, group_size),
        uniform_restored(weight, Format(bits, group_size)),
    ):
        assert (ours <= 1.01 * row_errors(weight, other) + 1e-9 * weight.square().sum(1)).all()


@given(st.integers(3, 4), st.integers(0, 10**6), st.floats(0, 2))
@settings(max_examples=20, deadline=None)
def test_matrices_are_better_than_asymmetric_grids(bits: int, seed: int, tail: float) -> None:
    assert worst_ratio(matrix(8, 192, tail, seed) + 0.03, bits, 32) < 1


@pytest.mark.parametrize(("bits", "most"), [(4, 0.72), (3, 0.75)])
def test_some_of_smollm2_is_better_than_normal_float_and_uniform(smollm2: LoadedModel, bits: int, most: float) -> None:
    for address, linear in list(smollm2.linears.items())[::26]:
        assert worst_ratio(linear.weight[:96].float(), bits) < most, address


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "most"), [(4, 0.68), (3, 0.74)])
def test_all_of_smollm2_is_better_than_normal_float_and_uniform(smollm2: LoadedModel, bits: int, most: float) -> None:
    ratios = {address: worst_ratio(linear.weight.float(), bits) for address, linear in smollm2.linears.items()}
    assert len(ratios) == 210
    assert max(ratios.values()) < most, max(ratios, key=lambda address: ratios[address])


def test_column_weights_are_what_is_minimised() -> None:
    format, weight = CodebookFormat(3, 32), matrix(16, 256, 0.2, seed=3)
    importance = torch.rand(256, generator=torch.Generator().manual_seed(0)) ** 4
    plain, weighted = restored(weight, format), restored(weight, format, importance)
    assert row_errors(weight, weighted, importance).sum() < 0.97 * row_errors(weight, plain, importance).sum()
    assert row_errors(weight, plain).sum() < row_errors(weight, weighted).sum()
    again = restored(weight, format, 1000 * importance)
    torch.testing.assert_close(again, weighted, rtol=0, atol=2e-3 * float(weight.abs().max()))
    weighed_nf = row_errors(weight, normal_float_restored(weight, 3, 32), importance)
    assert (row_errors(weight, weighted, importance) <= 1.01 * weighed_nf).all()


def test_groups_count_by_the_square_of_their_scale() -> None:
    """Values learned with the scale itself as weight leave more error, where groups differ in size."""
    format, large = CodebookFormat(2, 16), torch.tensor([True] + 7 * [False]).repeat_interleave(16).repeat(3)
    spread = matrix(8, 384, 0.0, seed=4)
    weight = torch.where(large, spread, 0.014 * (spread.sign() + spread))
    found = anyk(weight, None, format)
    scales, offsets = (values.float().repeat_interleave(16, 1) for values in (found.scales, found.offsets))
    scaled = (weight - offsets) / scales
    other = kmeans(scaled, scales, 4, torch.float16).centres
    worse = found._replace(codebook=other, codes=encode_codebook(scaled, other))
    ours, theirs = (row_errors(weight, dequantize_codebook(q, format, torch.float32)).sum() for q in (found, worse))
    assert ours < 0.96 * theirs


def test_dead_columns_and_inputs_without_any_activation() -> None:
    weight, format = matrix(4, 64, 0.5, seed=5), CodebookFormat(3, 16)
    assert torch.equal(restored(weight, format, torch.zeros(64)), restored(weight, format))
    alive = (torch.arange(64) % 2).float()
    found = restored(weight, format, alive)
    assert torch.isfinite(found).all()
    assert row_errors(weight, found, alive).sum() < row_errors(weight, restored(weight, format), alive).sum()


@pytest.mark.parametrize(
    "bad",
    [torch.ones(63), torch.ones(64, 1), -torch.ones(64), torch.full((64,), torch.nan), torch.full((64,), torch.inf)],
)
def test_column_weights_that_make_no_sense_are_refused(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="column weights"):
        anyk(torch.ones(2, 64), bad, CodebookFormat(4, 16))


@pytest.mark.parametrize("group_size", [WHOLE_ROW, 16, 7])
def test_rows_that_a_code_book_holds_are_exact(group_size: int) -> None:
    format = CodebookFormat(3, group_size)
    constant = torch.tensor([[0.5], [-0.25], [0.0], [3.0]]).expand(4, 40)
    assert torch.equal(restored(constant, format), constant)
    signs = torch.where(torch.rand(4, 40, generator=torch.Generator().manual_seed(0)) < 0.5, -0.5, 0.5)
    assert torch.equal(restored(signs, format), signs)
    zero_groups = matrix(3, 56, 0.0, seed=6)
    zero_groups[:, 7:35] = 0
    assert not restored(zero_groups, CodebookFormat(3, 7))[:, 7:35].any()


def test_values_too_small_or_too_large_for_the_scales() -> None:
    tiny = restored(matrix(2, 32, 0.0, seed=7) * 1e-9, CodebookFormat(4, 16))
    assert torch.equal(tiny, torch.zeros(2, 32))
    huge = torch.full((1, 32), 1e6)
    huge[0, 0] = -1e6
    assert not torch.isfinite(restored(huge, CodebookFormat(4, 16))).all()


def test_the_same_codes_again_and_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, format = matrix(20, 96, 0.7, seed=8), CodebookFormat(4, 32)
    first, again = anyk(weight, None, format), anyk(weight, None, format)
    monkeypatch.setattr(sys.modules["mixprec.compress.anyk"], "_CHUNK_ROWS", 7)
    chunked = anyk(weight, None, format)
    for one, two, three in zip(first, again, chunked, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_of_weights(dtype: torch.dtype) -> None:
    weight, format = matrix(6, 128, 0.0, seed=9).to(dtype), CodebookFormat(4, 32)
    found = anyk(weight, None, format)
    assert found.scales.dtype == found.codebook.dtype == (dtype if dtype.itemsize == 2 else torch.float16)
    values = dequantize_codebook(found, format, dtype)
    assert values.dtype == dtype
    assert (
        row_errors(weight, values).sum() < 0.8 * row_errors(weight, normal_float_restored(weight.float(), 4, 32)).sum()
    )
