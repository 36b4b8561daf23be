"""The figures of calibration texts from outcomes of jobs."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from scripts_of import script

from mixprec.evaluate.passages import Passage


@pytest.fixture(scope="module")
def texts() -> ModuleType:
    return script("calibration_text")


def row(plain: float, reasoning: float) -> dict[str, Any]:
    """KL per token on both kinds; on reasoning it is twice as large in the second passage as in the first."""
    return {
        "cpu_seconds": 10.0,
        "plain": [{"tokens": 10, "kl_sum": 10 * plain}, {"tokens": 30, "kl_sum": 30 * plain}],
        "reasoning": [{"tokens": 10, "kl_sum": 5 * reasoning}, {"tokens": 10, "kl_sum": 10 * reasoning}],
    }


def test_ratios_are_of_means_over_draws(texts: ModuleType) -> None:
    rows = {
        "gptq-plain": [row(0.5, 0.8), row(0.7, 0.8)],
        "gptq-reasoning": [row(0.9, 0.4), row(0.9, 0.4)],
        "sparsegpt-plain": [row(1.0, 1.0), row(1.0, 1.0)],
        "sparsegpt-reasoning": [row(1.0, 0.5), row(1.0, 0.5)],
    }
    found = texts.told(rows)
    assert found["kl"]["gptq"]["plain"]["plain"] == pytest.approx(0.6)
    assert found["kl_draws"]["gptq"]["plain"]["plain"] == pytest.approx([0.5, 0.7])
    assert found["kl"]["gptq"]["plain"]["reasoning"] == pytest.approx(0.6)
    assert found["over_plain"]["gptq"]["reasoning"] == pytest.approx({"plain": 1.5, "reasoning": 0.5})
    low, high = found["over_plain_ci"]["gptq"]["reasoning"]["plain"]
    assert 0.9 / 0.7 <= low < 1.5 < high <= 0.9 / 0.5
    # The same passages for both: what both find hard cancels.
    assert found["over_plain_ci"]["sparsegpt"]["reasoning"]["reasoning"] == pytest.approx([0.5, 0.5])
    assert found["cpu_seconds"] == 80
    assert "| GPTQ w3g64 | reasoning | 0.900 (1.50 [" in found["table"]
    assert "plain" not in found["over_plain"]["gptq"]


def test_passages_are_spread(texts: ModuleType) -> None:
    every = [Passage(torch.tensor([number])) for number in range(20)]
    assert [int(each.tokens) for each in texts.spread(every, 4)] == [2, 7, 12, 17]
    assert len(texts.spread(every, 3)) == 3
