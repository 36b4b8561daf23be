"""The benchmark of all architectures: figures of one, what is told of all, and a loop that sees a wrong code."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import architectures_figures

    return architectures_figures


def test_figures_of_experts(figures: ModuleType) -> None:
    row = figures.row("mixtral", quick=True)
    assert row["attribution"] == "packed" and row["attribution_rel_error"] < 1e-9
    # Attention, and three matrices of each of four experts.
    assert row["gptq_codes"] == 2 * 32 * (32 + 16) + 4 * 3 * 32 * 48
    assert row["gptq_codes_equal"] == row["gptq_codes"]
    assert row["dense_logits_diff"] < 1e-5
    assert (row["roundtrip_failed"], row["resume_differs"]) == (0, 0)


def test_a_wrong_code_is_seen(figures: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import architectures
    import architectures_gptq

    solved = architectures_gptq._solved

    def wrong(*given: object) -> object:
        weight, step = solved(*given)
        weight[0, 0] += step[0, 0]
        return weight, step

    monkeypatch.setattr(architectures_gptq, "_solved", wrong)
    samples = torch.randint(3, 300, (3, 24), generator=torch.Generator().manual_seed(4))
    equal, count = figures.codes(architectures.model_of("llama"), samples)
    assert 0 < equal < count


def test_rows_add_up(figures: ModuleType) -> None:
    row = {
        "attribution_rel_error": 1e-12,
        "gptq_codes": 10,
        "gptq_codes_equal": 10,
        "dense_logits_diff": 0.0,
        "roundtrip_failed": 0,
        "resume_differs": 0,
    }
    other = {**row, "gptq_codes": 30, "gptq_codes_equal": 20, "attribution_rel_error": 1e-3, "resume_differs": 1}
    found = figures.totals({"one": row, "other": other})
    assert found == {
        "architectures": 2,
        "attribution_max_rel_error": 1e-3,
        "gptq_codes_equal": 0.75,
        "dense_logits_max_diff": 0.0,
        "roundtrip_failures": 0,
        "resume_differences": 1,
    }
