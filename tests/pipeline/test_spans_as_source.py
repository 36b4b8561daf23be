"""Recipes that take spans, as annotate or a review wrote them, in place of annotated traces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

import mixprec as mp
from mixprec.core import seals
from mixprec.traces import spans


@pytest.fixture
def corrected(tmp_path: Path) -> Path:
    """Spans that no annotation gives: those of the annotation without the first."""
    found = mp.annotate(tiny.write_traces(tmp_path / "traces.jsonl"))
    fewer = [spans.AnnotatedTrace(each.trace, each.spans[1:]) for each in found]
    spans.save_spans(tmp_path / "corrected.jsonl", fewer)
    return tmp_path / "corrected.jsonl"


def test_annotate_keeps_the_files_own_spans(corrected: Path) -> None:
    assert list(mp.annotate(corrected)) == spans.load_spans(corrected)
    assert list(mp.annotate(corrected, first=2)) == spans.load_spans(corrected)[:2]
    cues = mp.annotate(corrected, annotator="cues")
    assert list(cues) != spans.load_spans(corrected)  # an annotator that is named annotates anew


def test_a_recipe_takes_them(corrected: Path, tmp_path: Path) -> None:
    model = tiny.write_checkpoint(tmp_path / "model")
    recipe = tiny.write_recipe(tmp_path / "recipe.yaml", model, corrected, variants=None)
    mp.run(recipe, out=tmp_path / "run")
    assert spans.load_spans(tmp_path / "run" / "spans.jsonl") == spans.load_spans(corrected)
    importance = mp.Importance.load(tmp_path / "run" / "importance")
    direct = mp.attribute(str(model), corrected)
    for behaviour, scores in direct.scores.items():
        assert importance.scores[behaviour] == pytest.approx(scores, rel=1e-4)


def test_rows_with_and_without_spans_are_refused(corrected: Path) -> None:
    rows = [json.loads(line) for line in corrected.read_text().splitlines()]
    rows[1] = {key: value for key, value in seals.content(rows[1]).items() if key != "spans"}
    corrected.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(mp.UserError, match=r"corrected\.jsonl:2: key 'spans' is missing, other rows have it"):
        mp.annotate(corrected)


def test_spans_of_no_scored_behaviour_are_refused(corrected: Path) -> None:
    bare = [spans.AnnotatedTrace(each.trace, []) for each in spans.load_spans(corrected)]
    spans.save_spans(corrected, bare)
    with pytest.raises(mp.UserError, match=r"no trace has a span of .*annotate the traces again"):
        mp.annotate(corrected)
