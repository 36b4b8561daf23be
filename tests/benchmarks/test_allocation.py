"""The allocation benchmark's figures from outcomes of jobs: ratios, the best of the others, intervals, missing ones."""

from __future__ import annotations

import argparse
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from test_results import results, script


@pytest.fixture
def allocation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in ("machine", "intervals"):
        monkeypatch.setitem(sys.modules, name, script(name))
    return script("allocation")


ARGUMENTS = argparse.Namespace(model="tiny", threads=1, samples=4, passages=2, proposals=3, draws=2, quick=False)


def job(*sums: float, bits: float = 3.25) -> dict[str, Any]:
    """A job whose passages of 10 tokens have these sums of KL; the last one is WikiText's."""

    def entry(values: tuple[float, ...]) -> dict[str, Any]:
        return {"kl_mean": sum(values) / (10 * len(values)), "kl_mean_ci": None}

    return {
        "evaluation": {"both": entry(sums), "traces": entry(sums[:-1]), "wikitext": entry(sums[-1:])},
        "behaviours": {"backtracking": {"kl_mean": sums[0]}},
        "kl_by_passage": [{"tokens": 10, "kl_sum": value} for value in sums],
        "effective_bits": bits,
    }


def outcomes() -> dict[str, Any]:
    found = {}
    for budget in ("3.25", "3.5", "4.0"):
        found |= {f"{name}@{budget}": job(4, 5, 6) for name in ("autoscheme", "inverse", "random0")}
        found |= {f"uniform@{budget}": job(8, 8, 8), f"modelopt@{budget}": job(3, 4, 5), f"ours@{budget}": job(2, 2, 3)}
    cost = {"seconds_total": 10.0, "cpu_seconds": 10.0, "peak_rss_bytes": 7, "resumed": False}
    return found | {
        "ours@4.0": job(2, 3, 4),
        "protection@paper": job(6, 6, 6),
        "scores": {**cost, "sweep_cpu_seconds": 6.0, "forward_cpu_seconds": 2.0},
        "allocate_autoscheme": {
            "seconds_each": [40.0, 1.0],
            "cpu_seconds": 39.5,
            "seconds_total": 40.0,
            "peak_rss_bytes": 9,
        },
        "allocate_modelopt": {
            "seconds_each": [40.0, 1.0],
            "cpu_seconds": 15.0,
            "seconds_total": 41.0,
            "peak_rss_bytes": 8,
        },
    }


def test_the_worst_budget_against_the_best_of_the_others(allocation: ModuleType) -> None:
    found = allocation.figures(outcomes(), ARGUMENTS)
    assert found["best_other"] == {"3.25": "modelopt", "3.5": "modelopt", "4.0": "modelopt"}
    assert found["kl_ratio_vs_best_peer"] == found["kl_ratio_vs_best_peer_400"] == pytest.approx(9 / 12)
    assert found["kl_ratio_vs_best_peer_325"] == pytest.approx(7 / 12)
    low, high = found["kl_ratio_ci"]["4.0"]
    assert 2 / 3 <= low < 9 / 12 < high <= 4 / 5  # the least and the largest ratio of a passage
    assert found["gap_recovered"] == pytest.approx(1 - 7 / 24)
    assert found["gap_recovered_protection"] == pytest.approx(1 - 18 / 24)
    assert found["scoring_over_forward"] == 3
    assert found["speedup_vs_autoscheme"] == 4
    assert found["speedup_vs_modelopt"] is None  # other processes had more than half of its core
    assert found["cpu_speedup_vs_modelopt"] == 1.5
    assert found["kl_ratio_vs_protection"] is found["kl_ratio_vs_q3_k_m"] is None
    assert found["kl_ratio_exchange"] == found["kl_ratio_predicted"] == {"3.25": None, "3.5": None, "4.0": None}


def test_what_scores_predict_is_compared_with_the_best_other(allocation: ModuleType) -> None:
    found = outcomes() | {"additive@3.5": {**job(2, 2, 2), "predicted_kl": 0.3}}
    found["modelopt@3.5"]["predicted_kl"], found["uniform@3.5"]["predicted_kl"] = 0.4, 0.9
    figures = allocation.figures(found, ARGUMENTS)
    assert figures["kl_predicted"]["additive@3.5"] == 0.3 and figures["kl_predicted"]["ours@3.5"] is None
    assert figures["kl_ratio_predicted"] == {"3.25": None, "3.5": pytest.approx(0.75), "4.0": None}


def test_a_plan_is_the_mean_of_its_draws_and_intervals_hold_their_scatter(allocation: ModuleType) -> None:
    found = outcomes()
    once = allocation.figures(found, ARGUMENTS)
    found |= {"ours@4.0#1": job(4, 5, 6), "modelopt@4.0#1": job(3, 4, 5), "last@4.0#1": job(1, 1, 1)}
    twice = allocation.figures(found, ARGUMENTS)
    assert "last@4.0" not in twice["kl"]  # a draw of a plan that was not measured as it is
    assert twice["kl_draws"]["ours@4.0"] == [9 / 30, 15 / 30]
    assert twice["kl"]["ours@4.0"] == pytest.approx(12 / 30)
    assert twice["kl_ratio_vs_best_peer_400"] == pytest.approx(12 / 12)
    low, high = twice["kl_ratio_ci"]["4.0"]
    assert low < once["kl_ratio_ci"]["4.0"][1] < 15 / 12 < high  # every passage of the second draw is dearer
    assert {key: twice[key] for key in ("gap_recovered", "gap_recovered_ci")} == {
        key: once[key] for key in ("gap_recovered", "gap_recovered_ci")
    }


def test_the_interval_over_draws_has_the_variance_of_a_mean(allocation: ModuleType) -> None:
    rows = [job(value, value, value) for value in (1.0, 2.0, 4.0, 9.0)]  # passages alike: only the draws differ
    low, high = allocation.interval([rows], lambda own: own, resamples=40_000)
    samples = np.array([1.0, 2.0, 4.0, 9.0]) / 10
    draws = np.random.default_rng(1).choice(samples, size=(40_000, 3)).mean(1)
    assert draws.var() == pytest.approx(samples.var(ddof=1) / 4, rel=0.03)  # of D draws, D - 1 are drawn again
    assert [low, high] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.02)


def test_without_a_peer_there_is_no_best_one(allocation: ModuleType) -> None:
    found = outcomes()
    del found["autoscheme@3.5"]
    figures = allocation.figures(found, ARGUMENTS)
    assert figures["kl_ratio_vs_best_peer"] is None
    assert figures["kl_ratio_vs_best_peer_350"] is None
    assert figures["kl_ratio_vs_best_peer_325"] is not None
    assert set(allocation.figures({}, ARGUMENTS)) == set(figures) == set(results.meanings(allocation.__doc__))


def test_ranks_are_those_of_the_best_scorer_and_the_papers(allocation: ModuleType) -> None:
    def row(scorer: str, target: str, spearman: float | None, of: str = "all") -> dict[str, Any]:
        ci = None if spearman is None else [spearman - 0.1, spearman + 0.1]
        return {
            "scorer": scorer,
            "target": target,
            "scores_of": of,
            "metric": "kl",
            "spearman": spearman,
            "spearman_ci_passages": ci,
        }

    rows = [row("fisher", "all", 0.8), row("importance", "all", 0.1), row("first_order", "all", None)]
    rows += [row("measured", "all", 1.0), row("fisher", "backtracking", 0.7)]
    found = allocation.ablation_figures({"validity": rows})
    assert found["spearman_best_scorer"] == 0.8
    assert found["spearman_best_scorer_name"] == "fisher"
    assert found["spearman_importance"] == 0.1
    assert found["spearman_by_behaviour"] == {"backtracking": {"fisher, all": 0.7}}
    assert allocation.ablation_figures(None)["spearman_best_scorer"] is None


def test_all_jobs_have_names_that_figures_know(allocation: ModuleType) -> None:
    jobs = allocation.jobs(quick=False, draws=2)
    assert len(set(jobs)) == len(jobs)
    assert {
        f"{name}@{budget}" for name in ("ours", "uniform", *allocation.PEERS) for budget in allocation.BUDGETS
    } <= set(jobs)
    assert {"ours@3.5#1", "backtracking@3.25#1"} <= set(jobs) and "ours@3.5#2" not in jobs
    assert set(allocation.jobs(quick=True, draws=2)) <= set(jobs)
