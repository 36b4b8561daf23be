from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixprec.plan.sensitivity import Sensitivity
from mixprec.sensitivity import validity
from mixprec.sensitivity.cells import METRICS, Cell, Result

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


def test_intervals_come_from_passages() -> None:
    random = np.random.default_rng(0)
    base = np.linspace(1, 5, 12)
    steady = np.repeat(base[:, None], 6, axis=1)
    noisy = steady * random.lognormal(0, 0.8, steady.shape)
    (row,) = [
        row for row in validity.judge([table(base)], results(steady), 50) if row["metric"] == "kl" and row["spearman"]
    ]
    assert row["spearman"] == 1 and row["spearman_ci"] == [1, 1] and row["top10_overlap"] == 10
    (row,) = [
        row for row in validity.judge([table(base)], results(noisy), 50) if row["metric"] == "kl" and row["spearman"]
    ]
    low, high = row["spearman_ci"]
    assert low < row["spearman"] <= 1 and 0.05 < high - low < 0.8


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
