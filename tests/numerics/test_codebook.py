"""k-means and code books against an exact dynamic program in plain float64 loops."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixprec.numerics.codebook import (
    CodebookQuantized,
    best_binned,
    dequantize_codebook,
    encode_codebook,
    error,
    kmeans,
    lloyd,
    normal_float,
    sort_values,
)
from mixprec.numerics.formats import CodebookFormat

# As published: QLoRA, arXiv 2305.14314, appendix E.
NF4 = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]


def least_error(values: Sequence[float], weights: Sequence[float], clusters: int) -> float:
    """The error of the best centres, over all ways to cut the sorted values into runs."""
    points = sorted(zip(values, weights, strict=True))

    @functools.cache
    def spread(start: int, end: int) -> float:
        run = points[start:end]
        mass = math.fsum(c for _, c in run)
        mean = math.fsum(c * x for x, c in run) / mass if mass else 0.0
        return math.fsum(c * (x - mean) ** 2 for x, c in run)

    best = [spread(0, end) for end in range(len(points) + 1)]
    for _ in range(clusters - 1):
        best = [min(best[start] + spread(start, end) for start in range(end + 1)) for end in range(len(points) + 1)]
    return best[-1]


def plain_error(values: Tensor, weights: Tensor, centres: Tensor) -> Tensor:
    distances = (values.double()[:, :, None] - centres.double()[:, None, :]).square().amin(2)
    return (distances * weights.double()).sum(1)


def heavy_tailed(rows: int, columns: int, freedom: float, seed: int) -> Tensor:
    normal = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    chi = torch.randn(rows, columns, int(freedom), generator=torch.Generator().manual_seed(seed + 1)).double()
    return normal / chi.square().mean(-1).sqrt()


@given(
    st.lists(st.floats(-2, 2, width=16), min_size=1, max_size=16),
    st.lists(st.sampled_from([0.0, 0.1, 1.0, 7.0]), min_size=16, max_size=16),
)
@settings(max_examples=60, deadline=None)
def test_a_row_of_few_values_gets_the_best_centres(values: list[float], weights: list[float]) -> None:
    weights = weights[: len(values)]
    row, importance = torch.tensor([values]).double(), torch.tensor([weights]).double()
    found = kmeans(row, importance, 4, torch.float64)
    # Errors are compared in float32 while cuts are chosen.
    slack = 1e-6 * math.fsum(c * x * x for x, c in zip(values, weights, strict=True))
    assert float(found.error) <= least_error(values, weights, 4) + slack + 1e-12
    assert float(found.error) == pytest.approx(float(plain_error(row, importance, found.centres)), abs=1e-12)


@pytest.mark.parametrize(("clusters", "slack"), [(4, 1.02), (8, 1.02), (16, 1.03)])
@pytest.mark.parametrize("freedom", [1, 3, 50])
def test_long_rows_come_close_to_the_best(clusters: int, slack: float, freedom: int) -> None:
    values = heavy_tailed(2, 150, freedom, seed=clusters)
    weights = torch.rand(2, 150, generator=torch.Generator().manual_seed(0)).double()
    found = kmeans(values, weights, clusters, torch.float64)
    best = sum(least_error(x.tolist(), c.tolist(), clusters) for x, c in zip(values, weights, strict=True))
    assert best * (1 - 1e-9) <= float(found.error.sum()) <= best * slack


def test_iterations_never_add_to_the_error() -> None:
    values, weights = heavy_tailed(5, 300, 3, seed=0), heavy_tailed(5, 300, 3, seed=9).abs()
    data = sort_values(values, weights)
    centres = torch.linspace(-1, 1, 16).double().expand(5, -1)
    errors = [error(data, centres)]
    for _ in range(12):
        centres = lloyd(data, centres, 1)
        errors.append(error(data, centres))
    steps = torch.stack(errors).diff(dim=0)
    assert (steps <= 1e-12 * errors[0]).all()
    assert (errors[-1] < 0.9 * errors[0]).all()
    assert (error(data, lloyd(data, best_binned(data, 16), 10)) < errors[-1]).all()


def test_errors_are_those_of_the_nearest_centres() -> None:
    values, weights = heavy_tailed(4, 99, 3, seed=2).float(), torch.rand(4, 99)
    centres = heavy_tailed(4, 8, 3, seed=3).sort(1).values
    torch.testing.assert_close(error(sort_values(values, weights), centres), plain_error(values, weights, centres))


@given(st.integers(1, 3), st.integers(1, 40), st.integers(0, 2**31 - 1))
@settings(max_examples=50, deadline=None)
def test_no_row_is_worse_than_a_grid(rows: int, columns: int, seed: int) -> None:
    values, weights = heavy_tailed(rows, columns, 1, seed), torch.ones(rows, columns).double()
    grids = [torch.linspace(-1, 1, 8).double(), normal_float(3)]
    found = kmeans(values, weights, 8, torch.float16, grids)
    assert found.centres.dtype == torch.float16
    assert (found.centres.diff(dim=1) >= 0).all()
    torch.testing.assert_close(found.error, plain_error(values, weights, found.centres), rtol=1e-6, atol=1e-9)
    for grid in grids:
        assert (found.error <= plain_error(values, weights, grid.half().expand(rows, -1)) * (1 + 1e-9) + 1e-12).all()


@pytest.mark.parametrize("different", [1, 3, 16])
def test_no_more_values_than_centres_leave_no_error(different: int) -> None:
    """Even where they lie so unevenly that coarse bins would throw them together."""
    levels = (2.0 ** -torch.arange(different)).double()
    pick = torch.randint(different, (3, 500), generator=torch.Generator().manual_seed(0))
    pick[:, :different] = torch.arange(different)
    found = kmeans(levels[pick], torch.ones(3, 500).double(), 16, torch.float16)
    assert not plain_error(levels[pick], torch.ones(3, 500), found.centres).any()


def test_values_without_weight_do_not_matter() -> None:
    values = heavy_tailed(2, 80, 3, seed=4)
    weights = torch.rand(2, 80, generator=torch.Generator().manual_seed(0)).double()
    weights[:, ::2] = 0
    found = kmeans(values, weights, 4, torch.float64)
    alone = sum(least_error(x[1::2].tolist(), c[1::2].tolist(), 4) for x, c in zip(values, weights, strict=True))
    assert float(found.error.sum()) <= alone * 1.02
    nothing = kmeans(values, torch.zeros(2, 80).double(), 4, torch.float64)
    assert torch.isfinite(nothing.centres).all()
    assert not nothing.error.any()


def test_weights_of_any_size_and_spread_are_held() -> None:
    """Groups of small scale beside groups of large ones: weights of 1e-18 and of 1e18 in one row."""
    values = heavy_tailed(2, 200, 3, seed=5)
    weights = torch.ones(2, 200).double()
    small, large = kmeans(values, weights * 1e-18, 8, torch.float64), kmeans(values, weights * 1e18, 8, torch.float64)
    torch.testing.assert_close(small.centres, large.centres)
    torch.testing.assert_close(small.error * 1e36, large.error)
    weights[:, ::2] = 1e-18
    mixed = kmeans(values, weights, 8, torch.float64).centres
    assert ((mixed >= values.amin(1, keepdim=True)) & (mixed <= values.amax(1, keepdim=True))).all()


def test_codes_are_of_the_nearest_entries() -> None:
    values, codebook = heavy_tailed(5, 70, 3, seed=6).float(), heavy_tailed(5, 16, 3, seed=7).half().sort(1).values
    codes = encode_codebook(values, codebook)
    assert codes.dtype == torch.uint8
    distances = (values[:, :, None] - codebook.float()[:, None, :]).abs()
    chosen = distances.gather(2, codes.long()[:, :, None])[:, :, 0]
    torch.testing.assert_close(chosen, distances.amin(2), rtol=0, atol=1e-6)


def test_dequantize_by_hand_with_a_smaller_last_group() -> None:
    quantized = CodebookQuantized(
        codes=torch.tensor([[0, 3, 1], [2, 2, 0]], dtype=torch.uint8),
        codebook=torch.tensor([[-1.0, -0.5, 0.25, 1.0], [-1.0, 0.0, 0.5, 0.75]], dtype=torch.float16),
        scales=torch.tensor([[2.0, 4.0], [0.5, 0.0]], dtype=torch.float16),
        offsets=torch.tensor([[0.5, 0.0], [0.0, 3.0]], dtype=torch.float16),
    )
    expected = torch.tensor([[-1.5, 2.5, -2.0], [0.25, 0.25, 3.0]])
    assert torch.equal(dequantize_codebook(quantized, CodebookFormat(2, 2), torch.float32), expected)
    assert dequantize_codebook(quantized, CodebookFormat(2, 2), torch.bfloat16).dtype == torch.bfloat16


def test_normal_float_is_the_published_one() -> None:
    torch.testing.assert_close(normal_float(4), torch.tensor(NF4).double(), rtol=0, atol=1e-6)
    for bits in (2, 3):
        levels = normal_float(bits)
        assert len(levels) == 2**bits
        assert (levels.diff() > 0).all()
        assert levels[0] == -1
        assert levels[-1] == 1
        assert levels[2 ** (bits - 1) - 1] == 0
