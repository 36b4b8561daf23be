"""The solver against brute force, rational numbers, HiGHS on the whole problem, and on a model of 70B's size."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from mixprec.plan.knapsack import Infeasible, Unit, solve


def damage(units: Sequence[Unit], chosen: Sequence[int]) -> float:
    return math.fsum(unit.damages[index] for unit, index in zip(units, chosen, strict=True))


def cost(units: Sequence[Unit], chosen: Sequence[int]) -> int:
    return sum(unit.costs[index] for unit, index in zip(units, chosen, strict=True))


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Unit], int]:
    # Few different numbers make ties; many make gaps.
    costs = draw(st.sampled_from([st.integers(0, 4), st.integers(0, 10**9)]))
    damages = draw(st.sampled_from([st.integers(0, 3).map(float), st.floats(0, 100, allow_subnormal=False)]))
    choices = st.lists(st.tuples(costs, damages), min_size=1, max_size=4)
    rows = draw(st.lists(choices, min_size=1, max_size=6))
    units = [Unit(*(tuple(column) for column in zip(*row, strict=True))) for row in rows]  # type: ignore[misc]
    top = sum(max(unit.costs) for unit in units)
    return units, draw(st.integers(sum(min(unit.costs) for unit in units), top + 1))


@settings(max_examples=120, deadline=None)
@given(problems())
def test_nothing_that_fits_is_better(problem: tuple[list[Unit], int]) -> None:
    units, limit = problem
    chosen = solve(units, limit)
    assert cost(units, chosen) <= limit
    every = itertools.product(*(range(len(unit.costs)) for unit in units))
    best = min(damage(units, each) for each in every if cost(units, each) <= limit)
    assert damage(units, chosen) == pytest.approx(best, rel=1e-9, abs=1e-9)


def large(seed: int, spread: float) -> list[Unit]:
    """80 blocks of 7 modules in the shapes of a 70B model, 8 formats."""
    generator = np.random.default_rng(seed)
    bits = np.array([2.25, 3.25, 4.25, 4.5, 5.25, 6.25, 8.25, 16])
    shapes = [8192 * 8192, 1024 * 8192, 1024 * 8192, 8192 * 8192, *[28672 * 8192] * 3] * 80
    units = []
    for weights in shapes:
        base = math.exp(generator.normal(0, 1.5)) * weights / 1e8
        damages = base * 4.0**-bits * np.exp(generator.normal(0, spread, len(bits)))
        units.append(Unit(tuple(int(b * weights) for b in bits), tuple(map(float, damages))))
    return units


def whole(units: Sequence[Unit], limit: int) -> float:
    """The least damage, by HiGHS without any reduction."""
    n, m = len(units), len(units[0].costs)
    rows = np.repeat(np.arange(n), m)
    choose = csr_array((np.ones(n * m), (rows, np.arange(n * m))), shape=(n, n * m))
    costs = np.array([unit.costs for unit in units], dtype=float).reshape(1, -1) / limit
    damages = np.array([unit.damages for unit in units]).ravel()
    scale = 1000 / damages.max()
    constraints = [LinearConstraint(choose, 1, 1), LinearConstraint(costs, -np.inf, 1)]
    options = {"mip_rel_gap": 0}
    found = milp(
        damages * scale, integrality=np.ones(n * m), bounds=Bounds(0, 1), constraints=constraints, options=options
    )
    return float(found.fun) / scale


@pytest.mark.parametrize(("seed", "bits"), [(0, 2.5), (1, 3.5)])
def test_the_reduction_loses_nothing(seed: int, bits: float) -> None:
    units = large(seed, 0.3)[:63]
    limit = int(bits * sum(unit.costs[-1] // 16 for unit in units))
    assert damage(units, solve(units, limit)) == pytest.approx(whole(units, limit), rel=1e-7)


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.5])
def test_a_70b_model_takes_less_than_a_second(spread: float) -> None:
    units = large(0, spread)
    weights = sum(unit.costs[-1] // 16 for unit in units)
    for bits in (2.5, 3.25, 3.5, 4.5):
        started = time.process_time()
        chosen = solve(units, int(bits * weights))
        assert time.process_time() - started < 1
        assert 0.999 * bits * weights < cost(units, chosen) <= int(bits * weights)


def test_ties_go_to_the_earlier_unit_and_the_cheaper_choice() -> None:
    alike = Unit((1, 2), (5.0, 1.0))
    assert solve([alike, alike, alike], 4) == [1, 0, 0]
    assert solve([Unit((3, 2, 2), (1.0, 1.0, 1.0))], 3) == [1]


def test_what_never_fits_says_what_is_needed() -> None:
    with pytest.raises(Infeasible) as problem:
        solve([Unit((2, 3), (1.0, 0.0)), Unit((5,), (0.0,))], 6)
    assert problem.value.least == 7


def exactly(units: Sequence[Unit], limit: int) -> Fraction:
    """The least damage in rational numbers: all solutions that no other one beats, unit by unit."""
    front = {0: Fraction(0)}
    for unit in units:
        sums: dict[int, Fraction] = {}
        for spent, damaged in front.items():
            for more, worse in zip(unit.costs, unit.damages, strict=True):
                if spent + more <= limit:
                    sums[spent + more] = min(
                        damaged + Fraction(worse), sums.get(spent + more, damaged + Fraction(worse))
                    )
        front, least = {}, None
        for spent in sorted(sums):
            if least is None or sums[spent] < least:
                least = front[spent] = sums[spent]
    return min(front.values())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([10**4, 10**9, 10**12]), st.sampled_from([1.0, 1e-26, 1e18]))
def test_large_costs_without_a_common_unit_and_any_scale_of_damage(seed: int, largest: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    units = []
    for _ in range(6):
        weights, worst = int(generator.integers(largest // 10, largest)), scale * 10 ** generator.uniform(-9, 0)
        damages = worst * 4.0 ** -np.arange(5) * generator.uniform(0.6, 1.5, 5)
        units.append(Unit(tuple(weights * quarters // 4 for quarters in (9, 13, 17, 21, 25)), tuple(damages.tolist())))
    least, most = sum(unit.costs[0] for unit in units), sum(unit.costs[-1] for unit in units)
    limit = int(generator.integers(least, most))
    chosen = solve(units, limit)
    assert cost(units, chosen) <= limit
    found = sum(Fraction(unit.damages[index]) for unit, index in zip(units, chosen, strict=True))
    assert found <= exactly(units, limit) * (1 + Fraction(1, 10**12))


@pytest.mark.parametrize("wanted", [0.33, 0.505, 0.52, 0.55])
def test_sparsities_whose_zeros_are_rounded(wanted: float) -> None:
    """Costs that all but share a unit, and limits between its multiples, leave many solutions near the best."""
    generator, shares = np.random.default_rng(0), (0.3, 0.4, 0.5, 0.6, 0.7)
    units = []
    for weights in [576 * 576, 192 * 576, 192 * 576, 576 * 576, *[576 * 1536] * 3] * 30:
        base = weights * 10 ** generator.uniform(-1.5, 0)
        damages = tuple(base * share**2 * generator.uniform(0.9, 1.1) for share in shares)
        units.append(Unit(tuple(weights - round(share * weights) for share in shares), damages))
    limit = math.floor((1 - wanted) * 30 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 576 * 1536))
    started = time.process_time()
    chosen = solve(units, limit)
    assert time.process_time() - started < 5
    assert cost(units, chosen) <= limit
    # Nothing else of the same sizes, a bit more generous, is better by more than that is worth.
    assert damage(units, solve(units, limit + 50)) == pytest.approx(damage(units, chosen), rel=1e-3)


def test_damage_that_is_linear_in_cost_is_thinned_and_ends() -> None:
    """Every choice is as good as any other: a search that keeps all sums would never end."""
    generator = np.random.default_rng(0)
    units = []
    for weights in generator.integers(10**5, 10**8, 210).tolist():
        costs = tuple(int(bits * weights) for bits in (2.25, 3.25, 4.25, 5.25, 8.25))
        units.append(Unit(costs, tuple(float(16 * weights - each) for each in costs)))
    limit = int(1.3 * sum(unit.costs[0] for unit in units))
    assert 0 <= limit - cost(units, solve(units, limit)) < 1e-7 * limit


@pytest.mark.parametrize("unit", [Unit((1,), (math.nan,)), Unit((-1,), (0.0,)), Unit((), ()), Unit((1,), (-1.0,))])
def test_other_units_are_refused(unit: Unit) -> None:
    with pytest.raises(ValueError, match="no unit"):
        solve([unit], 3)
