from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixprec.numerics import chance
from mixprec.plan.sensitivity import Sensitivity
from mixprec.sensitivity import validity
from mixprec.sensitivity.cells import METRICS, Result
from mixprec.sensitivity.sets import Cell

ADDRESSES = [f"model.layers.{layer}.mlp.up_proj" for layer in range(12)]


def results(per_passage: np.ndarray) -> dict[Cell, Result]:
    """Cells whose KL sums over passages are the rows (modules, passages), of ten tokens each."""
    counts = {"all": [10.0] * per_passage.shape[1], "backtracking": [0.0] * per_passage.shape[1]}
    found = {}
    for address, row in zip(ADDRESSES, per_passage.tolist(), strict=False):
        sums = {metric: {"all": row, "backtracking": [0.0] * len(row)} for metric in METRICS}
        found[Cell(address, "w3g64", (address,))] = Result(sums, counts)
    return found


def table(scores: np.ndarray, target: str = "all") -> Sensitivity:
    rows = {address: {"w3g64": float(score)} for address, score in zip(ADDRESSES, scores, strict=False)}
    return Sensitivity(model="m", identity="i", scorer="fisher", target=target, method="gptq", scores=rows)


def test_agreement_is_that_of_plain_ranks() -> None:
    scores, damage = np.array([4.0, 1.0, 3.0, 2.0]), np.array([40.0, 10.0, 20.0, 30.0])
    found = validity.agreement(scores, damage)
    assert found.spearman == pytest.approx(1 - 6 * 2 / (4 * 15))  # two modules change places: Σd² = 2
    assert found.kendall == pytest.approx((5 - 1) / 6)
    assert found.overlap == 4
    assert validity.agreement(scores, np.ones(4)) == (None, None, None)


@given(st.lists(st.integers(1, 10**6), min_size=5, max_size=12, unique=True), st.integers(1, 50))
def test_agreement_knows_order_only(values: list[int], factor: int) -> None:
    scores = np.array(values, dtype=float)
    same = validity.agreement(scores, scores * factor)
    assert same.spearman == pytest.approx(1) and same.kendall == pytest.approx(1)
    assert validity.agreement(scores, -scores).spearman == pytest.approx(-1)


def judged(scores: np.ndarray, per_passage: np.ndarray) -> dict[str, Any]:
    rows = validity.judge([table(scores)], results(per_passage), 50)
    return next(row for row in rows if row["metric"] == "kl" and row["target"] == "all")


def test_intervals_are_of_modules_and_passages() -> None:
    random = np.random.default_rng(0)
    base = np.linspace(1, 5, 12)
    steady = np.repeat(base[:, None], 6, axis=1)
    noisy = steady * random.lognormal(0, 0.8, steady.shape)
    (row,) = [
        row for row in validity.judge([table(base)], results(steady), 50) if row["metric"] == "kl" and row["spearman"]
    ]
    assert row["spearman"] == 1 and row["spearman_ci"] == pytest.approx([1, 1]) and row["top10_overlap"] == 10
    (row,) = [
        row for row in validity.judge([table(base)], results(noisy), 50) if row["metric"] == "kl" and row["spearman"]
    ]
    low, high = row["spearman_ci_passages"]
    assert low < row["spearman"] <= 1 and 0.05 < high - low < 0.8
    few = row["spearman_ci"]
    assert few[1] - few[0] > high - low


def drawn(random: np.random.Generator, modules: int, rho: float) -> tuple[np.ndarray, list[Result]]:
    """Scores and damage of modules of a population with Spearman's 6/π asin(ρ/2), damage barely noisy by passage."""
    one, other = random.normal(size=(2, modules))
    damage = np.exp(rho * one + np.sqrt(1 - rho**2) * other)[:, None] * random.lognormal(0, 0.1, (modules, 6))
    return np.exp(one), [Result({"kl": {"all": row.tolist()}}, {"all": [1.0] * 6}) for row in damage]


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_intervals_over_modules_cover_the_population_and_those_over_passages_do_not(rho: float) -> None:
    random, truth, runs = np.random.default_rng(1), 6 / np.pi * np.arcsin(rho / 2), 40
    covered = {"spearman_ci": 0, "spearman_ci_passages": 0}
    for _ in range(runs):
        scores, results = drawn(random, 14, rho)
        row = validity._with_intervals(scores, results, "kl", "all", 60)
        for key in covered:
            covered[key] += row[key][0] <= truth <= row[key][1]
    assert covered["spearman_ci"] >= 0.85 * runs  # 95% less three standard errors
    assert covered["spearman_ci_passages"] < 0.5 * runs


def test_one_passage_has_an_interval_over_modules_only() -> None:
    row = judged(np.arange(12.0), np.random.default_rng(0).uniform(1, 2, (12, 1)))
    assert row["spearman_ci_passages"] is None and row["spearman_ci"][0] < row["spearman_ci"][1]


def test_overlaps_stand_beside_chance() -> None:
    row = judged(np.arange(12.0), np.repeat(np.arange(1.0, 13)[:, None], 3, axis=1))
    assert (row["top10_overlap"], row["top10_overlap_of"]) == (10, 10)
    assert row["top10_overlap_chance"] == pytest.approx(100 / 12)
    assert row["top10_overlap_chance_of_as_many"] == pytest.approx(1 / math.comb(12, 10))


@given(st.integers(1, 60), st.integers(1, 12))
def test_chance_is_that_of_counting(count: int, top: int) -> None:
    """Vandermonde: of all lists of k, C(k, i) C(n-k, k-i) share i members with a given one."""
    size = min(count, top)
    ways = {i: math.comb(size, i) * math.comb(count - size, size - i) for i in range(size + 1)}
    every = math.comb(count, size)
    for seen in (0, size // 2, size):
        found = chance.of_overlap(count, top, seen)
        assert found.size == size
        assert found.expected == pytest.approx(sum(i * n for i, n in ways.items()) / every)
        assert found.probability == pytest.approx(sum(n for i, n in ways.items() if i >= seen) / every)


def test_a_target_without_tokens_has_no_agreement_and_behaviours_are_judged_on_their_own() -> None:
    found = results(np.random.default_rng(0).uniform(1, 2, (12, 3)))
    rows = validity.judge([table(np.arange(12)), table(np.arange(12), "backtracking")], found, 10)
    assert {(row["scores_of"], row["target"]) for row in rows} == {
        ("all", "all"),
        ("all", "backtracking"),
        ("backtracking", "backtracking"),
    }
    assert all(row["spearman"] is None for row in rows if row["target"] == "backtracking")
    cell = validity.cell_rows(found, 10)[0]
    assert cell["kl"]["backtracking"]["mean"] is None and cell["kl"]["all"]["ci"][0] > 0


def test_means_weigh_passages_by_their_tokens() -> None:
    result = Result({"kl": {"all": [2.0, 30.0]}}, {"all": [1.0, 10.0]})
    assert validity.means([result], "kl", "all", np.array([[1, 1], [2, 0]])).tolist() == [[32 / 11], [2.0]]
