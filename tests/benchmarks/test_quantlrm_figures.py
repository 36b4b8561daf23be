"""The figures of benchmarks/quantlrm.py from outcomes of jobs."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from scripts_of import script


@pytest.fixture(scope="module")
def quantlrm() -> ModuleType:
    return script("quantlrm")


def row(traces: float, wikitext: float) -> dict[str, Any]:
    """KL per token on both texts; in the second passage of each it is twice as large as in the first."""

    def passages(mean: float) -> list[dict[str, float]]:
        return [{"tokens": 10, "kl_sum": 20 * mean / 3}, {"tokens": 10, "kl_sum": 40 * mean / 3}]

    parts = {"traces": passages(traces), "wikitext": passages(wikitext)}
    return {**parts, "both": parts["traces"] + parts["wikitext"], "cpu_seconds": 3.0, "effective_bits": 3.25}


def test_ratios_are_of_means_over_draws_and_by_text(quantlrm: ModuleType) -> None:
    found = quantlrm.told({"awq": [row(1.0, 2.0), row(1.0, 2.0)], "quantlrm": [row(0.4, 3.0), row(0.6, 3.0)]})
    assert found["kl"] == pytest.approx({"awq": 1.5, "quantlrm": 1.75})
    assert found["kl_draws"]["quantlrm"] == pytest.approx([1.7, 1.8])
    assert found["kl_ratio_traces"] == pytest.approx(0.5) and found["kl_ratio_wikitext"] == pytest.approx(1.5)
    assert found["kl_ratio"] == pytest.approx(1.75 / 1.5)
    # The same passages for both: what both find hard cancels.
    assert found["kl_ratio_wikitext_ci"] == pytest.approx([1.5, 1.5])
    low, high = found["kl_ratio_traces_ci"]
    assert low == pytest.approx(0.4) and high == pytest.approx(0.6)
    assert found["cpu_seconds"] == {"awq": 3.0, "quantlrm": 3.0}


def test_what_is_missing_is_null(quantlrm: ModuleType) -> None:
    found = quantlrm.told({"awq": [row(1.0, 2.0)], "plan_updates": [row(1.0, 1.0)], "plan_random0": [row(2.0, 2.0)]})
    assert found["kl_ratio"] is None and found["kl_ratio_ci"] is None
    assert found["kl_ratio_plan_random"] is None  # one of three random plans
    assert found["kl_ratio_plan_weight_error"] is None and found["kl"]["plan_updates"] == pytest.approx(1.0)


def test_plans_are_compared_with_all_random_ones(quantlrm: ModuleType) -> None:
    rows = {"plan_updates": [row(1.0, 1.0)], **{name: [row(2.0, 2.0)] for name in quantlrm.RANDOM}}
    found = quantlrm.told(rows)
    assert found["kl_ratio_plan_random"] == pytest.approx(0.5)
    assert found["kl_ratio_plan_random_ci"] == pytest.approx([0.5, 0.5])


def test_parts_are_chosen_by_name(quantlrm: ModuleType) -> None:
    assert quantlrm.wanted("awq#0", None) and quantlrm.wanted("plan_updates", None)
    assert quantlrm.wanted("quantlrm#1", ["awq"]) and not quantlrm.wanted("plan_random0", ["awq"])
    assert quantlrm.wanted("plan_random0", ["plans"]) and not quantlrm.wanted("awq#0", ["plans"])
