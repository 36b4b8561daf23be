"""GPTAQ against a reference that solves its least-squares problem anew after every column, from the inputs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixprec.compress.gptaq import gptaq
from mixprec.compress.gptq import gptq
from mixprec.numerics.formats import WHOLE_ROW, Format
from mixprec.numerics.groupwise import Quantized, dequantize, encode, fit
from mixprec.numerics.hessian import factorize
from mixprec.numerics.statistics import InputSums

formats = st.builds(Format, st.integers(2, 8), st.sampled_from([WHOLE_ROW, 4, 8]), st.booleans())


def inputs_of(width: int, tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (tokens, width) of the compressed model and, a good deal off, of the uncompressed one, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = normal(tokens, width) @ (torch.eye(width) + 0.5 * normal(width, width) / width**0.5).double()
    return inputs, inputs + 0.2 * inputs @ normal(width, width) / width**0.5 + 0.1 * normal(tokens, width)


def moments(inputs: torch.Tensor, full: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return inputs.T @ inputs / len(inputs), (full - inputs).T @ inputs / len(inputs)


def solve_step_by_step(
    weight: torch.Tensor, inputs: torch.Tensor, full: torch.Tensor, format: Format, order: list[int]
) -> torch.Tensor:
    """Codes. With columns S settled and F free, the free weights v are always those that minimise over all tokens

        ‖Σ_S ŵ_s x_s + Σ_F v_f x_f − Σ_S w_s x̃_s − Σ_F w_f x_f‖²

    found by lstsq on the inputs: no Hessian, no factor, nothing carried from step to step. Grids are those of W + W P.
    """
    rows, width = weight.shape
    size = width if format.group_size == WHOLE_ROW else format.group_size
    whole = Format(format.bits, WHOLE_ROW, format.symmetric)
    settled = torch.zeros(rows, width, dtype=torch.float64)
    codes, grids = torch.zeros(rows, width), {}

    def best(free: list[int], done: list[int], rounded: torch.Tensor) -> torch.Tensor:
        target = full[:, done] @ weight[:, done].T + inputs[:, free] @ weight[:, free].T
        return torch.linalg.lstsq(inputs[:, free], target - inputs[:, done] @ rounded[:, done].T).solution.T

    for step, column in enumerate(order):
        done, free = order[:step], order[step:]
        current = best(free, done, settled) if done else weight[:, free]
        start = column // size * size
        if start not in grids:
            # What the columns of the group will get from those inside it for drift alone is in the grid's weights.
            members = [c for c in order if start <= c < start + size]
            paid = torch.empty(rows, len(members), dtype=torch.float64)
            ideal = settled.clone()
            for n, member in enumerate(members):
                now = best(order[step + n :], order[: step + n], ideal)
                paid[:, n] = ideal[:, member] = now[:, 0]
            grids[start] = fit(paid, whole, torch.float16)
        code = encode(current[:, :1], grids[start], whole)
        codes[:, column] = code[:, 0].double()
        settled[:, column] = dequantize(Quantized(code, grids[start]), whole, torch.float64)[:, 0]
    return codes


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 20), formats, st.sampled_from([None, "groups"]), st.integers(0, 10**6))
def test_every_code_is_that_of_the_asymmetric_objective(
    rows: int, width: int, format: Format, order: str | None, seed: int
) -> None:
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    inputs, full = inputs_of(width, 5 * width, seed)
    hessian, drift = moments(inputs, full)
    size = width if format.group_size == WHOLE_ROW else format.group_size
    factor = factorize(hessian, damping=0.0, act_order=order is not None, group_size=size)
    assert factor.retries == 0
    columns = list(range(width)) if factor.order is None else factor.order.tolist()
    expected = solve_step_by_step(weight, inputs, full, format, columns)
    found = gptaq(weight, factor, format, drift, alpha=1.0, block=8, search=None)
    assert torch.equal(found.codes.double(), expected.double())


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_jointly_paid_it_is_gptq_of_the_best_weights(act_order: bool, alpha: float) -> None:
    """Of those that map inputs closest to w (x + α (x̃ − x)), found by lstsq on the inputs."""
    weight = torch.randn(5, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs, full = inputs_of(24, 100, 1)
    hessian, drift = moments(inputs, full)
    factor = factorize(hessian, damping=0.0, act_order=act_order)
    aim = (inputs + alpha * (full - inputs)) @ weight.T
    expected = gptq(torch.linalg.lstsq(inputs, aim).solution.T, factor, Format(3, 8))
    found = gptaq(weight, factor, Format(3, 8), drift, alpha=alpha, joint=True)
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.grid.scales, expected.grid.scales)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 50), formats, st.booleans(), st.booleans(), st.integers(0, 99))
def test_without_drift_it_is_gptq(
    rows: int, width: int, format: Format, act_order: bool, zero_alpha: bool, seed: int
) -> None:
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    inputs, full = inputs_of(width, 2 * width, seed)
    hessian, drift = moments(inputs, full)
    factor = factorize(hessian.float(), act_order=act_order)
    given_drift, alpha = (drift.float(), 0.0) if zero_alpha else (torch.zeros(width, width), 1.0)
    found, expected = gptaq(weight, factor, format, given_drift, alpha=alpha), gptq(weight, factor, format)
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.grid.scales, expected.grid.scales)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("act_order", [False, True])
def test_a_second_layer_makes_up_for_the_first(act_order: bool, joint: bool) -> None:
    """Two layers at 3 bits, the second fed by the compressed first: nearer to the original, on other tokens too."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(64, 64, generator=generator) for _ in range(2))
    mixing = torch.randn(64, 64, generator=generator)
    tokens = torch.randn(4096, 64, generator=generator) @ mixing
    format, errors = Format(3, 32), {}
    hidden = tokens[:2048].T @ tokens[:2048] / 2048
    rough = dequantize(gptq(first, factorize(hidden), format), format, torch.float32)
    inputs, full = (torch.tanh(tokens @ weight.T / 64) for weight in (rough, first))
    sums = InputSums(64, drift=True)
    sums.add(inputs[:2048], full=full[:2048])
    statistics = sums.result()
    assert statistics.drift is not None
    factor = factorize(statistics.hessian, act_order=act_order, group_size=32)
    for alpha in (0.0, 0.25, 0.5, 1.0):
        quantized = gptaq(second, factor, format, statistics.drift, alpha=alpha, joint=joint)
        moved = full @ second.T - inputs @ dequantize(quantized, format, torch.float32).T
        errors[alpha] = moved[:2048].square().mean(), moved[2048:].square().mean()
    for seen in (0, 1):
        assert errors[0.25][seen] < errors[0.0][seen]
        assert errors[0.5][seen] < 0.98 * errors[0.0][seen]
    assert errors[1.0][0] < errors[0.5][0]


def test_dead_inputs_are_paid_for_by_the_others() -> None:
    """An input that only the uncompressed model has: the others, which predict it, take over its weight."""
    inputs, full = inputs_of(6, 400, 0)
    inputs[:, 2] = 0
    full = inputs.clone()
    full[:, 2] = inputs[:, 4]
    hessian, drift = moments(inputs, full)
    weight = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factor = factorize(hessian, damping=1e-9)
    restored = dequantize(gptaq(weight, factor, Format(8), drift, alpha=1.0, joint=True), Format(8), torch.float64)
    assert int(restored[:, 2].count_nonzero()) == 0
    assert bool(((restored[:, 4] - weight[:, 4] - weight[:, 2]).abs() < 0.1).all())


def test_what_does_not_fit_is_refused() -> None:
    factor = factorize(torch.eye(4))
    weight = torch.ones(2, 4)
    with pytest.raises(ValueError, match="drift"):
        gptaq(weight, factor, Format(3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="drift"):
        gptaq(weight, factor, Format(3), torch.full((4, 4), math.nan))
    with pytest.raises(ValueError, match="4 inputs"):
        gptaq(torch.ones(2, 5), factor, Format(3), torch.zeros(4, 4))
