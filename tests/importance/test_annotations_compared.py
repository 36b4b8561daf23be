"""What two annotations of the same traces do to importance, on a tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
from scipy.stats import spearmanr

import mixprec as mp
from mixprec.importance import artifact
from mixprec.traces import spans
from mixprec.traces.spans import AnnotatedTrace, CharSpan


@pytest.fixture
def sides(tmp_path: Path) -> tuple[mp.Spans, mp.Spans]:
    """The annotation, and one that swaps two labels and lacks a third."""
    first = mp.annotate(tiny.write_traces(tmp_path / "traces.jsonl"))
    swap = {"backtracking": "uncertainty_estimation", "uncertainty_estimation": "backtracking"}
    second = [
        AnnotatedTrace(
            each.trace,
            [
                CharSpan(swap.get(span.behaviour, span.behaviour), span.start, span.end)
                for span in each.spans
                if span.behaviour != "example_testing"
            ],
        )
        for each in first
    ]
    return first, mp.Spans(tuple(second))


def test_rankings_are_those_of_both_importances(sides: tuple[mp.Spans, mp.Spans], tmp_path: Path) -> None:
    model = mp.Model(str(tiny.write_checkpoint(tmp_path / "model", steps=20)))
    found = mp.agreement(*sides, model=model, out=tmp_path / "out", resamples=50)
    importance = found.importance
    assert importance is not None
    scores = [mp.attribute(model, side, resamples=0).scores for side in sides]
    assert set(importance["behaviours"]) == {"backtracking", "uncertainty_estimation", "adding_knowledge"}
    for behaviour, row in importance["behaviours"].items():
        one, other = (np.array(list(side[behaviour].values())) for side in scores)
        assert row["spearman"] == pytest.approx(spearmanr(one, other).statistic, abs=1e-6)
        tops = [set(np.flatnonzero(artifact.ranks(each) <= artifact.TOP)) for each in (one, other)]
        assert row["top10_overlap"] == len(tops[0] & tops[1])
    assert importance["behaviours"]["adding_knowledge"]["spearman"] == 1
    assert importance["behaviours"]["adding_knowledge"]["spearman_ci"] == [1, 1]
    assert importance["behaviours"]["backtracking"]["spearman"] < 1
    rows = [row["spearman"] for row in importance["behaviours"].values()]
    assert importance["mean"]["spearman"] == pytest.approx(np.mean(rows), abs=1e-6)
    shown = str(found)
    assert "no importance in one of both: example_testing" in shown and "Spearman" in shown
    again = mp.agreement(*sides, model=model, out=tmp_path / "out", resamples=50)  # from the traces' statistics
    assert again.data == found.data
    assert [row["unit"] for row in found.rows()] == ["characters", "spans"] * len(spans.ALL_BEHAVIOURS)


def test_an_annotation_without_scored_spans_is_named(sides: tuple[mp.Spans, mp.Spans], tmp_path: Path) -> None:
    model = mp.Model(str(tiny.write_checkpoint(tmp_path / "model")))
    bare = mp.Spans(tuple(AnnotatedTrace(each.trace, []) for each in sides[0]))
    with pytest.raises(mp.UserError, match="second: no span of backtracking"):
        mp.agreement(sides[0], bare, model=model)
    assert mp.agreement(sides[0], bare).behaviours["backtracking"]["characters"]["share_first"] == 0
