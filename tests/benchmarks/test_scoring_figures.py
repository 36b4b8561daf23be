"""The benchmark of scorers on a tiny model: every figure is there and explained, and is what it says."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
from test_results import script
from tiny import write_checkpoint


def test_all_figures_are_there_and_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "model", max_position_embeddings=2048)
    monkeypatch.setitem(sys.modules, "machine", script("machine"))
    benchmark = script("scoring")
    monkeypatch.setattr(benchmark, "MODEL", str(folder))
    options = {
        "quick": True,
        "modules": None,
        "passages": 2,
        "tokens": 32,
        "scored": 2,
        "scored_tokens": 2000,
        "importance": None,
    }
    figures = benchmark.study(argparse.Namespace(**options), tmp_path)
    assert set(figures) == set(script("results").meanings(benchmark.__doc__))
    assert figures["control"] == 0
    assert figures["modules"] == 14
    assert figures["spearman"][figures["best_scorer"]] == figures["spearman_best_scorer"]
    assert set(figures["spearman"]) >= {"fisher", "importance", "weight_error"}
    for entry in figures["targeted"].values():
        assert entry["difference"] == pytest.approx(entry["kl_own"] - entry["kl_all"], abs=1e-12)
    assert figures["forwards"] > 0
