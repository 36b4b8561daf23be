"""The figures of guided solves from outcomes of jobs."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from scripts_of import script


@pytest.fixture(scope="module")
def guided() -> ModuleType:
    return script("guided")


def row(kl: float, inside: float, seconds: float) -> dict[str, Any]:
    return {
        "cpu_seconds": seconds,
        "kl_by_passage": [{"tokens": 10, "kl_sum": 10 * kl}, {"tokens": 30, "kl_sum": 30 * kl}],
        "behaviour_by_passage": [{"tokens": 2, "kl_sum": 2 * inside}, {"tokens": 4, "kl_sum": 4 * inside}],
    }


def test_gains_are_ratios_of_means_over_draws(guided: ModuleType) -> None:
    rows = {
        "gptq-plain": [row(0.5, 0.4, 100.0), row(0.7, 0.4, 100.0)],
        "gptq-fisher1": [row(0.3, 0.4, 300.0)],
        "gptq-fisher1b": [row(0.33, 0.3, 300.0)],
        "gptaq-fisher1": [row(0.3, 0.4, 300.0)],
    }
    found = guided.told(rows)
    assert found["kl"]["gptq-plain"] == pytest.approx(0.6)
    assert found["kl_draws"]["gptq-plain"] == pytest.approx([0.5, 0.7])
    assert found["guided_gain"] == {"gptq-fisher1": pytest.approx(0.5), "gptq-fisher1b": pytest.approx(0.55)}
    assert found["guided_cpu"]["gptq-fisher1"] == pytest.approx(3.0)
    assert found["behaviour_gain"] == {"gptq": pytest.approx(0.75)}
    assert found["behaviour_overall"] == {"gptq": pytest.approx(1.1)}
    low, high = found["guided_interval"]["gptq-fisher1"]
    assert 0.42 < low < 0.5 < high < 0.61


def test_kinds_say_loss_and_groups(guided: ModuleType) -> None:
    assert guided.guidance("fisher16", 2) == {"loss": "fisher", "groups": 16, "seed": 2000}
    assert guided.guidance("fisher1b", 0) == {"loss": "fisher", "groups": 1, "seed": 0}
    assert guided.guidance("loss4raw", 0) == {"loss": "loss", "groups": 4, "seed": 0, "power": 1.0}
    assert guided.guidance("loss1", 1) == {"loss": "loss", "groups": 1, "seed": 1000}
