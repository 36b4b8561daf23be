"""The clipping search against the same descent in plain loops, and against doing nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixprec.compress import clipping
from mixprec.compress.clipping import CLIP, search_clip
from mixprec.compress.methods import solve
from mixprec.compress.options import SolveOptions
from mixprec.compress.solving import GroupInputs
from mixprec.numerics.formats import WHOLE_ROW, Format
from mixprec.numerics.groupwise import Grid, Quantized, Search, dequantize, encode, fit, quantize
from mixprec.numerics.statistics import InputStatistics
from mixprec.plan.schema import Treatment

formats = st.builds(Format, st.integers(2, 6), st.sampled_from([WHOLE_ROW, 1, 4, 5, 8, 64]), st.booleans())
searches = st.sampled_from([CLIP, Search(), Search(0.7, 0.3, 0), Search(0.9, 0.1, 2)])


def problem(rows: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Weights with heavy tails and the Hessian of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator, dtype=torch.float64) ** 3
    inputs = torch.randn(2 * width, width, generator=generator, dtype=torch.float64)
    inputs += torch.randn(2 * width, 1, generator=generator, dtype=torch.float64)
    return weight.to(dtype), (inputs.T @ inputs / len(inputs)).to(dtype)


def restored(weight: Tensor, grid: Grid, format: Format) -> Tensor:
    return dequantize(Quantized(encode(weight, grid, format), grid), format, torch.float64)


def losses(weight: Tensor, grid: Grid, format: Format, hessian: Tensor) -> Tensor:
    """(out,): every row's share of tr(Δ H Δᵀ)."""
    delta = restored(weight, grid, format) - weight.double()
    return ((delta @ hessian.double()) * delta).sum(1)


def descent(row: Tensor, hessian: Tensor, format: Format, search: Search) -> list[Grid]:
    """The grids of one row (1, in): each group in turn takes the grid that makes the whole row's error least."""
    width = row.shape[1]
    size = width if format.group_size == WHOLE_ROW else min(format.group_size, width)
    whole = Format(format.bits, WHOLE_ROW, format.symmetric)
    starts = range(0, width, size)
    grids = [fit(row[:, start : start + size], whole) for start in starts]

    def loss() -> float:
        parts = [restored(row[:, s : s + size], g, whole) for s, g in zip(starts, grids, strict=True)]
        delta = torch.cat(parts, 1) - row
        return float(delta @ hessian @ delta.T)

    for number, start in enumerate(starts):
        columns = row[:, start : start + size]
        best, least = grids[number], loss()

        def take(grid: Grid, number: int = number) -> None:
            nonlocal best, least
            grids[number] = grid
            if loss() < least:
                best, least = grid, loss()

        full = 1 - 2.0**-format.bits
        for part in [full] * (format.symmetric and full >= search.lowest) + list(search.factors):
            narrow = fit(columns * part, whole)
            turned = format.symmetric and columns.max() > -columns.min()
            take(narrow._replace(scales=-narrow.scales) if turned else narrow)
        for _ in range(search.refits):
            # The scale by least squares: the loss at three points of the parabola that it is.
            grids[number] = best
            levels = (restored(columns, best, whole) / best.scales.double()).round()
            values = []
            for scale in (0.0, 1.0, 2.0):
                parts = [restored(row[:, s : s + size], g, whole) for s, g in zip(starts, grids, strict=True)]
                parts[number] = scale * levels
                delta = torch.cat(parts, 1) - row
                values.append(float(delta @ hessian @ delta.T))
            curvature, slope = values[2] - 2 * values[1] + values[0], (values[2] - values[0]) / 2
            vertex = torch.tensor([[1 - slope / curvature]]).to(best.scales.dtype) if curvature > 1e-12 else best.scales
            if torch.isfinite(vertex).all() and (vertex > 0 or (format.symmetric and vertex < 0)):
                take(Grid(vertex, best.zeros))
        grids[number] = best
    return grids


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 14), formats, searches, st.integers(0, 10**6))
def test_grids_are_those_of_coordinate_descent(
    rows: int, width: int, format: Format, search: Search, seed: int
) -> None:
    weight, hessian = problem(rows, width, seed)
    found = search_clip(weight, hessian, format, search=search)
    for number, row in enumerate(weight):
        expected = descent(row[None], hessian, format, search)
        # Where two grids are equally good but for rounding either may be taken: compare what they come to.
        delta = torch.cat([grid.scales for grid in expected], 1)
        zeros = None if found.zeros is None else torch.cat([grid.zeros for grid in expected], 1)
        reference = losses(row[None], Grid(delta, zeros), format, hessian)
        here = losses(row[None], Grid(found.scales[[number]], found.zeros if zeros is None else found.zeros[[number]]),
                      format, hessian)  # fmt: skip
        torch.testing.assert_close(here, reference, rtol=2e-3, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 20),
    st.integers(1, 70),
    formats,
    searches,
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.integers(0, 999),
)
def test_no_row_is_worse_than_without_clipping(
    rows: int, width: int, format: Format, search: Search, dtype: torch.dtype, seed: int
) -> None:
    weight, hessian = problem(rows, width, seed, dtype)
    grid = search_clip(weight, hessian, format, search=search)
    plain = quantize(weight, format).grid
    assert grid.scales.dtype == plain.scales.dtype
    assert grid.scales.shape == plain.scales.shape
    assert bool((grid.scales != 0).all())
    assert format.symmetric or bool((grid.scales > 0).all())
    assert (grid.zeros is None) == format.symmetric
    clipped, spanning = (losses(weight, each, format, hessian) for each in (grid, plain))
    slack = 1e-9 if dtype == torch.float64 else 1e-3
    assert bool((clipped <= spanning * (1 + slack) + 1e-12).all())


@pytest.mark.parametrize("format", [Format(3, 16), Format(3, 16, symmetric=False)])
def test_heavy_tails_are_worth_clipping(format: Format) -> None:
    weight, hessian = problem(50, 64, 0, torch.float32)
    grid = search_clip(weight, hessian, format)
    spanning = losses(weight, fit(weight, format), format, hessian).sum()
    assert losses(weight, grid, format, hessian).sum() < 0.6 * spanning


def test_pieces_of_rows_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = problem(150, 24, 0)
    format = Format(3, 8, symmetric=False)
    at_once = search_clip(weight, hessian, format)
    monkeypatch.setattr(clipping, "_PIECE", 1)
    assert all(torch.equal(a, b) for a, b in zip(at_once, search_clip(weight, hessian, format), strict=True))


def test_a_group_of_zeros_and_a_hessian_of_another_width() -> None:
    weight, hessian = problem(3, 16, 0, torch.bfloat16)
    weight[:, :8] = 0
    grid = search_clip(weight, hessian, Format(3, 8), scale_dtype=torch.float16)
    assert grid.scales.dtype == torch.float16
    assert bool((grid.scales[:, 0] == 1).all())
    with pytest.raises(ValueError, match="Hessian"):
        search_clip(weight, hessian[:8, :8], Format(3, 8))


def test_what_awq_clips() -> None:
    weight, hessian = problem(24, 16, 0, torch.float32)
    weights = {f"model.layers.0.self_attn.{kind}_proj": weight for kind in "qkv"}
    statistics = InputStatistics(hessian, hessian.diagonal().sqrt(), 32)
    treatment = Treatment(format=Format(3, 8), method="awq")

    def clipped(options: SolveOptions) -> list[bool]:
        found = solve(weights, dict.fromkeys(weights, treatment), GroupInputs(statistics, options), options)
        grids = [each.quantized.grid for each in found.values() if isinstance(each.quantized, Quantized)]
        return [not torch.equal(grid.scales, fit(weight, Format(3, 8)).scales) for grid in grids]

    assert clipped(SolveOptions()) == [True, True, True]
    assert clipped(SolveOptions(clip="released")) == [False, False, True]
    assert clipped(SolveOptions(clip=False)) == [False, False, False]
