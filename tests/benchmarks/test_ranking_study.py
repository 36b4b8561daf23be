"""The ranking study scores a run's statistics again: what the run itself says, and what sharing the means changes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny
from test_results import script

from mixprec.importance import artifact
from mixprec.importance import attribute as stage
from mixprec.importance.options import PRESETS
from mixprec.traces import spans, store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    traces = [spans.char_spans(trace, "paper") for trace in store.load(str(tiny.write_traces(tmp_path / "t.jsonl")))]
    stage.attribute(tiny.build(), traces, tmp_path / "out", presets=PRESETS, identity="tiny", resamples=40)
    return tmp_path / "out"


def test_what_was_run_is_what_is_studied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "machine", script("machine"))
    monkeypatch.setattr("mixprec.importance.options.RESAMPLES", 40)
    study = script("ranking_study")
    made = artifact.load(folder / "importance.json")
    figures = study.study({"paper": folder, "released": folder}, made, "last_up")
    meanings = script("results").meanings(study.__doc__)
    assert {*figures, "released_spans"} == set(meanings)
    number = [module["label"] for module in made["modules"]].index("2_up")
    other = artifact.load(folder / "importance_released.json")
    for name, run in (("paper", made), ("released", other)):
        for behaviour, entry in run["behaviours"].items():
            expected = [int(artifact.ranks(entry["scores"])[number]), *entry["rank_intervals"][number]]
            assert figures["rank"][name][behaviour] == expected
            assert figures["stability"][name][behaviour] == entry["stability"]["spearman_mean"]
            assert figures["spearman_presets"][behaviour] == pytest.approx(made["comparison"][behaviour]["spearman"])
    assert any(value < 1 for value in figures["spearman_alias"].values())
