"""The page of the paper's findings, from figures made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import update_reproduction
from scripts_of import BENCHMARKS, script

results = script("results")
FINDINGS: dict[str, Any] = {
    "3 bits damage more": {
        "verdict": "holds",
        "paper": "Table 1",
        "recipe": "table1",
        "numbers": {"KL gptq_w3 − gptq_w4": {"difference": 0.1834, "ci": [0.15, 0.2]}},
    },
    "damage grows": {
        "verdict": "open",
        "paper": "Table 2",
        "recipe": "table2",
        "numbers": {
            "KL a_50 − a_30": {"difference": -1e-5, "ci": None},
            "first sparsity at which": {"folio": "a_50", "musique": None},
        },
    },
    "the last layer loses most": {
        "verdict": "fails",
        "paper": "Figure 3",
        "recipe": "figures",
        "numbers": {"awq_w4: rank": {"value": 7.0, "ci": [3, 12]}, "awq_w4: their part": [0.121, 1 / 30]},
    },
    "short outputs are right more often": {
        "verdict": "undecidable", "paper": "Table 10", "recipe": None, "why": "next to nothing is right"
    },
    "annotations agree": None,
}  # fmt: skip
FIGURES: dict[str, Any] = {
    "findings": FINDINGS, "holds": 1, "fails": 1, "open": 1, "undecidable": 1, "cpu_seconds": 8100.0,
    "model": "smollm2-135m-instruct", "quick": True,
}  # fmt: skip


def test_every_verdict_is_said_with_its_numbers() -> None:
    text = update_reproduction.block(FIGURES)
    lead, _ = text.split("\n", 1)
    assert lead == (
        "5 findings on smollm2-135m-instruct; holds: 1, does not hold: 1, open: 1, can't be decided at this scale: 1, "
        "not run: 1."
    )
    assert "This was a quick run" in text
    for line in (
        "| 1. 3 bits damage more | Table 1 | **holds** |",
        "| 5. annotations agree |  | **not run** |",
        "**Holds.** Table 1; recipe [small/table1](../recipes/small/table1.yaml).",
        "| KL `gptq_w3` − `gptq_w4` | 0.183 | [0.15, 0.2] |",
        "| KL `a_50` − `a_30` | -1e-05 | – |",
        "| first sparsity at which | folio: `a_50`, musique: none | |",
        "| `awq_w4`: rank | 7 | [3, 12] |",
        "| `awq_w4`: their part | 12.1%, 3.3% | |",
        "**Can't be decided at this scale.** Table 10. The reason: next to nothing is right.",
        "Its recipe was not run.",
    ):
        assert line in text.splitlines()


def test_without_a_run_the_page_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(update_reproduction, "FIGURES", tmp_path / "none.json")
    assert "The run was not made yet." in update_reproduction.page()


def test_the_page_of_results_takes_findings() -> None:
    about = {"benchmark": "reproduction.py", "command": "x", "machine": {"cores": 2}}
    text = results.section(FIGURES | {"about": about}, BENCHMARKS)
    assert "0.183" in text and "undecidable" in text
