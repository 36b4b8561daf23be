"""The evaluation benchmark: what it writes is what its docstring explains, with and without the paper's data."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from test_results import BENCHMARKS, results, script


@pytest.fixture
def evaluation(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return script("evaluation")


def explained() -> set[str]:
    text = ast.get_docstring(ast.parse((BENCHMARKS / "evaluation.py").read_text(encoding="utf-8")))
    return set(results.meanings(text))


def test_without_data_nothing_is_measured(evaluation: object, tmp_path: Path) -> None:
    figures = evaluation.scoring(tmp_path) | evaluation.benchmarks(tmp_path, tmp_path, 4, 1)  # type: ignore[attr-defined]
    assert set(figures) <= explained()
    assert {name for name, value in figures.items() if value is not None} == {"diagnosis_seconds_100_kb"}
    assert {"batch_speedup", "scores_per_second", "tokens_per_cpu_second_vllm", "table"} <= explained()


def test_rates_are_of_the_papers_outputs(evaluation: object, shared_data: Path) -> None:
    figures = evaluation.scoring(shared_data)  # type: ignore[attr-defined]
    assert figures["scores_per_second"] > 200 and figures["diagnoses_per_second"] > 5
