"""Coordinate descent beside the same descent in plain loops, and what it may never do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixprec.compress.descent import damped, descend
from mixprec.compress.gptq import gptq
from mixprec.compress.methods import solve
from mixprec.compress.options import SolveOptions
from mixprec.compress.solving import GroupInputs
from mixprec.numerics.formats import WHOLE_ROW, Format
from mixprec.numerics.groupwise import Quantized, Search, dequantize, encode, fit, quantize
from mixprec.numerics.hessian import factorize, output_error
from mixprec.numerics.statistics import InputStatistics
from mixprec.plan.schema import Treatment

formats = st.builds(Format, st.integers(2, 4), st.sampled_from([WHOLE_ROW, 3, 4, 8]), st.booleans())


def problem(rows: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    inputs = torch.randn(3 * width, width, generator=generator, dtype=torch.float64)
    inputs += torch.randn(3 * width, 1, generator=generator, dtype=torch.float64)
    return weight.to(dtype), (inputs.T @ inputs / len(inputs)).to(dtype)


def searched(weight: Tensor, format: Format) -> Quantized:
    """A start with scales below 0 too."""
    grid = fit(weight, format, search=Search())
    return Quantized(encode(weight, grid, format), grid)


def losses(found: Quantized, target: Tensor, hessian: Tensor, format: Format) -> Tensor:
    delta = dequantize(found, format, torch.float64) - target
    return ((delta @ hessian) * delta).sum(1)


def one_round(start: Quantized, target: Tensor, hessian: Tensor, format: Format) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of one row after a round, number by number."""
    t, h = target[0].numpy(), hessian.numpy()
    width = len(t)
    size = width if format.group_size == WHOLE_ROW else format.group_size
    group = [column // size for column in range(width)]
    zeros = np.zeros(max(group) + 1) if start.grid.zeros is None else start.grid.zeros[0].numpy().astype(float)
    scales = start.grid.scales[0].double().numpy().copy()
    levels = start.codes[0].double().numpy() - np.array([zeros[g] for g in group])
    low = -(2 ** (format.bits - 1)) if format.symmetric else 0

    def loss(scales: np.ndarray) -> float:
        delta = levels * np.array([scales[g] for g in group]) - t
        return float(delta @ h @ delta)

    used = [g for g in range(max(group) + 1) if any(levels[c] for c in range(width) if group[c] == g)]
    parts = np.array([[levels[c] if group[c] == g else 0.0 for c in range(width)] for g in used])
    if used:
        best = np.linalg.solve(parts @ h @ parts.T, parts @ h @ t)
        tried = scales.copy()
        for g, value in zip(used, best, strict=True):
            if 0.5 < value / scales[g] < 2:
                tried[g] = torch.tensor(value).to(start.grid.scales.dtype).double()
        if loss(tried) < loss(scales):
            scales = tried
    weights = levels * np.array([scales[g] for g in group])
    for column in range(width):
        g = group[column]
        slope = float((weights - t) @ h[:, column])
        best_weight = weights[column] - slope / h[column, column]
        level = min(max(round(best_weight / scales[g]), low - zeros[g]), low + 2**format.bits - 1 - zeros[g])
        levels[column], weights[column] = level, level * scales[g]
    return levels + np.array([zeros[g] for g in group]), scales


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), formats, st.integers(0, 10**6))
def test_a_round_is_that_of_plain_loops(width: int, format: Format, seed: int) -> None:
    target, hessian = problem(1, width, seed)
    start = searched(target, format)
    found = descend(start, target, hessian, format, 1).quantized
    codes, scales = one_round(start, target, hessian, format)
    expected = start._replace(
        codes=torch.tensor(codes[None]).to(start.codes.dtype),
        grid=start.grid._replace(scales=torch.tensor(scales[None]).to(start.grid.scales.dtype)),
    )
    if float(losses(expected, target, hessian, format)) < float(losses(start, target, hessian, format)) - 1e-12:
        assert torch.equal(found.codes, expected.codes)
        assert torch.equal(found.grid.scales, expected.grid.scales)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 90), formats, st.integers(0, 4), st.integers(0, 10**6))
def test_no_row_ends_worse_and_all_can_be_stored(rows: int, width: int, format: Format, rounds: int, seed: int) -> None:
    target, hessian = problem(rows, width, seed)
    start = searched(target, format)
    found, rests = descend(start, target, hessian, format, rounds)
    assert bool((losses(found, target, hessian, format) <= losses(start, target, hessian, format)).all())
    lowest = -(2 ** (format.bits - 1)) if format.symmetric else 0
    assert found.codes.dtype == start.codes.dtype
    assert lowest <= int(found.codes.min()) and int(found.codes.max()) < lowest + 2**format.bits
    assert found.grid.scales.dtype == start.grid.scales.dtype
    assert bool((found.grid.scales * start.grid.scales > 0).all())
    assert rests.shape == target.shape and bool(rests.isfinite().all())
    for row in range(rows):  # rows don't see one another
        alone = descend(
            Quantized(start.codes[[row]], start.grid._replace(
                scales=start.grid.scales[[row]], zeros=None if start.grid.zeros is None else start.grid.zeros[[row]]
            )), target[[row]], hessian, format, rounds,
        ).quantized  # fmt: skip
        torch.testing.assert_close(
            losses(alone, target[[row]], hessian, format), losses(found, target, hessian, format)[[row]]
        )


def test_after_many_rounds_no_single_code_is_better() -> None:
    format = Format(3, 8)
    target, hessian = problem(4, 24, 0)
    found = descend(quantize(target, format), target, hessian, format, 50).quantized
    least = losses(found, target, hessian, format)
    for column in range(24):
        for code in range(-4, 4):
            other = found.codes.clone()
            other[:, column] = code
            assert bool((losses(found._replace(codes=other), target, hessian, format) >= least - 1e-12).all())


def test_what_it_starts_from_is_the_hessian_of_the_factor() -> None:
    _, hessian = problem(1, 12, 0)
    hessian[3], hessian[:, 3] = 0, 0
    factor = factorize(hessian, damping=0.05)
    inverse = factor.upper.double().T @ factor.upper.double()
    torch.testing.assert_close(torch.linalg.inv(damped(hessian, factor)), inverse, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["gptq", "gptaq"])
@pytest.mark.parametrize("format", [Format(3, 16), Format(2, 16, symmetric=False)])
def test_solves_end_nearer_to_what_they_aim_at(method: str, format: Format) -> None:
    weight, hessian = problem(24, 64, 1, torch.float32)
    drift = 0.05 * torch.randn(64, 64, generator=torch.Generator().manual_seed(2))
    hessian[5], hessian[:, 5], drift[5], drift[:, 5] = 0, 0, 0, 0
    statistics = InputStatistics(hessian, hessian.diagonal().sqrt(), 200, drift if method == "gptaq" else None)
    treatment = Treatment(format=format, method=method)  # type: ignore[arg-type]
    found = {}
    for rounds in (0, 3):
        options = SolveOptions(descent=rounds)
        solved = solve({"m": weight}, {"m": treatment}, GroupInputs(statistics, options), options, rests=True)["m"]
        aim = weight.clone()
        aim[:, 5] = 0
        if method == "gptaq":
            factor = solved.factor
            assert factor is not None
            aim += 0.25 * aim @ drift @ torch.linalg.inv(damped(hessian, factor))
        assert solved.rests is not None and solved.rests.shape == weight.shape
        found[rounds] = output_error(aim - solved.restored, hessian)
    assert found[3] < 0.97 * found[0]


def test_without_rounds_nothing_is_told_of_it() -> None:
    assert "descent" not in SolveOptions().model_dump()
    assert SolveOptions(descent=2).model_dump()["descent"] == 2


def test_gptq_alone_is_what_it_was() -> None:
    weight, hessian = problem(6, 32, 3, torch.float32)
    factor = factorize(hessian, damping=0.03, act_order=True, group_size=16)
    options = SolveOptions()
    treatment = Treatment(format=Format(3, 16), method="gptq")
    inputs = GroupInputs(InputStatistics(hessian, hessian.diagonal().sqrt(), 200), options)
    found = solve({"m": weight}, {"m": treatment}, inputs, options)["m"].quantized
    assert isinstance(found, Quantized)
    assert torch.equal(found.codes, gptq(weight, factor, Format(3, 16)).codes)
