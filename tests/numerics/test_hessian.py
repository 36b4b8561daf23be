"""The factor of an inverse Hessian against explicit inverses in float64; damping, order, dead inputs, errors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixprec.numerics.hessian import (
    SingularHessian,
    activation_order,
    factorize,
    output_error,
    relative_output_error,
)


def hessian_of(width: int, tokens: int, seed: int = 0) -> torch.Tensor:
    """Second moments (in, in) float64 of correlated inputs of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    sizes = torch.logspace(-1, 1, width, dtype=torch.float64)[torch.randperm(width, generator=generator)]
    inputs = torch.randn(tokens, width, generator=generator, dtype=torch.float64) @ mixing * sizes
    return inputs.T @ inputs / tokens


def damped(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    return hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 230), st.booleans(), st.integers(0, 99))
def test_is_the_factor_of_the_damped_inverse(width: int, act_order: bool, seed: int) -> None:
    hessian = hessian_of(width, 2 * width, seed)
    factor = factorize(hessian, damping=0.02, act_order=act_order)
    expected = torch.linalg.inv(damped(hessian, 0.02))
    if factor.order is not None:
        expected = expected[factor.order][:, factor.order]
    assert torch.equal(factor.upper, factor.upper.triu())
    assert bool((factor.upper.diagonal() > 0).all())
    torch.testing.assert_close(factor.upper.T @ factor.upper, expected, rtol=1e-8, atol=1e-8 * float(expected.max()))
    assert (factor.order is not None) == act_order
    assert (factor.damping, factor.retries) == (0.02, 0)


def test_trailing_parts_are_factors_of_trailing_inverses() -> None:
    hessian = hessian_of(12, 40)
    upper = factorize(hessian, damping=0.01).upper
    for start in range(12):
        inverse = torch.linalg.inv(damped(hessian, 0.01)[start:, start:])
        torch.testing.assert_close(upper[start, start:] * upper[start, start], inverse[0])


def test_narrow_hessians_lose_only_the_last_rounding() -> None:
    hessian = hessian_of(120, 150).float()
    factor, exact = factorize(hessian), factorize(hessian.double())
    assert factor.upper.dtype == torch.float32
    assert torch.equal(factor.upper, exact.upper.float())
    assert factorize(hessian.bfloat16()).upper.dtype == torch.float32


def test_the_hessian_is_left_alone() -> None:
    hessian = hessian_of(8, 20)
    hessian[3], hessian[:, 3] = 0, 0
    before = hessian.clone()
    factorize(hessian, act_order=True)
    assert torch.equal(hessian, before)


def test_a_diagonal_hessian_has_a_diagonal_factor() -> None:
    hessian = torch.diag(torch.tensor([4.0, 1.0, 0.25]))
    factor = factorize(hessian, damping=0.0)
    assert torch.equal(factor.upper, torch.diag(torch.tensor([0.5, 1.0, 2.0])))


def test_dead_inputs_do_not_touch_the_others() -> None:
    hessian = hessian_of(9, 30)
    live = torch.tensor([True] * 9)
    live[[2, 7]] = False
    hessian[~live], hessian[:, ~live] = 0, 0
    factor = factorize(hessian, damping=0.05)
    assert torch.equal(factor.dead, ~live)
    alone = factorize(hessian[live][:, live], damping=0.05)
    torch.testing.assert_close(factor.upper[live][:, live], alone.upper)
    assert torch.equal(factor.upper[~live], torch.eye(9, dtype=torch.float64)[~live])


def test_inputs_that_are_all_dead() -> None:
    factor = factorize(torch.zeros(3, 3), act_order=True)
    assert bool(factor.dead.all())
    assert torch.equal(factor.upper, torch.eye(3))


@pytest.mark.parametrize("damping", [0.0, 1e-9])
def test_damping_is_raised_until_the_hessian_is_positive_definite(damping: float) -> None:
    hessian = torch.ones(5, 5, dtype=torch.float64)
    hessian[0, 0] = 1 - 1e-3  # an eigenvalue a little below zero
    factor = factorize(hessian, damping=damping)
    assert factor.retries > 0
    assert damping < factor.damping <= 1e-2
    mean = hessian.diagonal().mean()
    expected = torch.linalg.inv(hessian + factor.damping * mean * torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(factor.upper.T @ factor.upper, expected)


def test_no_damping_helps_an_indefinite_hessian() -> None:
    hessian = torch.diag(torch.tensor([1.0, 1.0, -500.0, 1.0]))
    with pytest.raises(SingularHessian, match="not positive definite"):
        factorize(hessian)
    hessian = torch.tensor([[1.0, 2.5], [2.5, 1.0]])
    with pytest.raises(ValueError, match=r"damping 0\.1 "):
        factorize(hessian, max_retries=1)
    assert factorize(hessian, max_retries=3).retries == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_entries_that_are_not_finite_are_refused(value: float) -> None:
    hessian = torch.eye(4)
    hessian[1, 2] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        factorize(hessian)


def test_negative_damping_is_refused() -> None:
    with pytest.raises(ValueError, match="damping"):
        factorize(torch.eye(2), damping=-0.1)


def test_activation_order() -> None:
    diagonal = torch.tensor([1.0, 3.0, 2.0, 3.0, 9.0, 0.0, 4.0])
    assert activation_order(diagonal).tolist() == [4, 6, 1, 3, 2, 0, 5]
    # Groups 0 to 2, 3 to 5 and the smaller last one: means 2, 4 and 4, the earlier of equals first.
    assert activation_order(diagonal, 3).tolist() == [4, 3, 5, 6, 1, 2, 0]
    assert activation_order(diagonal, 7).tolist() == activation_order(diagonal).tolist()
    assert factorize(torch.diag(diagonal), act_order=True, group_size=3).order.tolist() == [4, 3, 5, 6, 1, 2, 0]


def test_output_errors_are_means_over_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    restored = weight + 0.1 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    hessian = inputs.T @ inputs / 50
    moved = ((weight - restored) @ inputs.T).square().sum() / 50
    power = (weight @ inputs.T).square().sum() / 50
    assert output_error(weight - restored, hessian) == pytest.approx(float(moved))
    assert relative_output_error(weight, restored, hessian) == pytest.approx(float((moved / power).sqrt()))
    assert relative_output_error(weight.half(), weight.half(), hessian.float()) == 0
    assert relative_output_error(torch.zeros(4, 6), restored.float(), hessian.float()) > 0
    assert relative_output_error(torch.zeros(1, 6), torch.zeros(1, 6), hessian.float()) == 0
