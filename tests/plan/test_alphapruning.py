"""Sparsities from exponents against the formula in NumPy; their average is the target whatever comes in."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixprec.plan.alphapruning import allocate, by_block

units = st.lists(st.tuples(st.floats(1, 50), st.integers(1, 10**9)), min_size=1, max_size=40)


def average(sparsities: dict[str, float], weights: dict[str, int]) -> float:
    return math.fsum(sparsities[unit] * weights[unit] for unit in weights) / sum(weights.values())


def test_equals_the_papers_formula() -> None:
    generator = np.random.default_rng(0)
    alphas, weights = generator.uniform(1.5, 6, 20), generator.integers(10**4, 10**6, 20)
    for epsilon in (0.1, 0.3):
        low, high = 1 - epsilon, 1 + epsilon
        mapped = (alphas - alphas.min()) / (alphas.max() - alphas.min()) * (high - low) + low
        expected = mapped * 0.6 * weights.sum() / (weights * mapped).sum()
        names = [f"unit {index}" for index in range(20)]
        found = allocate(
            dict(zip(names, alphas.tolist(), strict=True)),
            dict(zip(names, weights.tolist(), strict=True)),
            0.6,
            epsilon=epsilon,
        )
        assert list(found) == names
        assert list(found.values()) == pytest.approx(expected.tolist(), rel=1e-12)


@given(units, st.floats(0.01, 1), st.floats(0, 0.999), st.floats(0.02, 0.999))
def test_average_is_the_target_and_no_unit_is_beyond_the_cap(
    data: list[tuple[float, int]], share: float, epsilon: float, cap: float
) -> None:
    target = share * cap
    alphas = {str(index): alpha for index, (alpha, _) in enumerate(data)}
    weights = {str(index): count for index, (_, count) in enumerate(data)}
    found = allocate(alphas, weights, target, epsilon=epsilon, cap=cap)
    assert average(found, weights) == pytest.approx(target, abs=1e-9)
    assert all(0 <= sparsity <= cap + 1e-12 for sparsity in found.values())
    ordered = sorted(found, key=lambda unit: alphas[unit])
    assert all(found[a] <= found[b] + 1e-12 for a, b in pairwise(ordered))


def test_what_is_beyond_the_cap_is_spread_in_proportion() -> None:
    alphas, weights = {"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 100, "b": 100, "c": 200}
    found = allocate(alphas, weights, 0.8, epsilon=0.5, cap=0.9)
    # c would get 1.5 η = 0.96; at 0.9 it leaves 320 − 180 of the zeros to a and b, at 0.5 to 1.
    assert found["c"] == 0.9
    assert found["b"] == pytest.approx(0.9)
    assert found["a"] == pytest.approx(0.5)
    roomy = allocate(alphas, weights, 0.8, epsilon=0.5, cap=0.95)
    assert roomy["a"] / roomy["b"] == pytest.approx(0.5)
    assert average(roomy, weights) == pytest.approx(0.8)


def test_the_heavier_tail_is_pruned_less() -> None:
    found = allocate({"heavy": 2.0, "light": 4.0}, {"heavy": 10, "light": 10}, 0.5, epsilon=0.3)
    assert found["heavy"] == pytest.approx(0.35)
    assert found["light"] == pytest.approx(0.65)


def test_equal_exponents_and_no_range_are_uniform() -> None:
    assert allocate({"a": 3.0, "b": 3.0}, {"a": 1, "b": 9}, 0.7) == {"a": pytest.approx(0.7), "b": pytest.approx(0.7)}
    found = allocate({"a": 1.0, "b": 3.0}, {"a": 1, "b": 9}, 0.7, epsilon=0)
    assert list(found.values()) == pytest.approx([0.7, 0.7])


def test_blocks_get_the_mean_of_their_modules() -> None:
    alphas = {"0.q": 2.0, "0.up": 4.0, "1.q": 5.0, "1.up": 6.0}
    blocks = {name: name[0] for name in alphas}
    assert by_block(alphas, blocks) == {"0.q": 3.0, "0.up": 3.0, "1.q": 5.5, "1.up": 5.5}
    weights = {"0.q": 1, "0.up": 3, "1.q": 1, "1.up": 3}
    found = allocate(by_block(alphas, blocks), weights, 0.5, epsilon=0.2)
    assert found == {name: pytest.approx(0.4 if name[0] == "0" else 0.6) for name in alphas}


@pytest.mark.parametrize(("target", "cap"), [(0.0, 0.99), (0.95, 0.9), (0.5, 1.0), (-0.1, 0.9)])
def test_impossible_targets_are_refused(target: float, cap: float) -> None:
    with pytest.raises(ValueError, match="0 < target <= cap < 1"):
        allocate({"a": 1.0}, {"a": 1}, target, cap=cap)


def test_impossible_units_are_refused() -> None:
    with pytest.raises(ValueError, match="epsilon"):
        allocate({"a": 1.0}, {"a": 1}, 0.5, epsilon=1.0)
    with pytest.raises(ValueError, match="not of the same units"):
        allocate({"a": 1.0}, {"b": 1}, 0.5)
    with pytest.raises(ValueError, match="a: alpha inf"):
        allocate({"a": math.inf}, {"a": 1}, 0.5)
    with pytest.raises(ValueError, match="0 weights"):
        allocate({"a": 1.0}, {"a": 0}, 0.5)
