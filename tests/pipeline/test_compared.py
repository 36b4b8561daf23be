"""Another model, and another annotation, beside a recipe's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from mixprec import pipeline, recipe
from mixprec.core.errors import UserError
from mixprec.importance import shift as shifts
from mixprec.pipeline import costs
from mixprec.report.html import write_report


def write(folder: Path, model: Path, **parts: Any) -> Path:
    """A recipe of importance on the tiny traces."""
    keys = {
        "title": "compared",
        "model": {"id": str(model)},
        "traces": {"source": str(tiny.write_traces(folder / "traces.jsonl"))},
        "importance": {"resamples": 20},
    }
    path = folder / "compared.yaml"
    path.write_text(json.dumps(keys | parts), encoding="utf-8")
    return path


def run(path: Path, out: Path) -> dict[str, Any]:
    return pipeline.Run(recipe.load(path), path.read_text(), path.stem, out, None).run()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One that learned for longer, and what it was."""
    folder = tmp_path_factory.mktemp("models")
    return tiny.write_checkpoint(folder / "later", steps=40), tiny.write_checkpoint(folder / "before", steps=5)


def test_another_model_beside_the_original(models: tuple[Path, Path], tmp_path: Path) -> None:
    later, before = models
    spec = {"traces": "same", "kind": ["increases", "net"], "models": {"what_it_was": {"id": str(before)}}}
    path = write(tmp_path, later, shift=spec)
    chosen = recipe.load(path)
    assert [each.name for each in costs.stages(chosen, pipeline.checked(chosen))] == ["importance", "shift what_it_was"]
    out = tmp_path / "run"
    told = run(path, out)["shifts"]["what_it_was"]
    assert told["page"] == "models/what_it_was/shift/shift.html"
    folders = (out, out / "models" / "what_it_was")
    again = shifts.shift(*(json.loads((each / "importance/importance.json").read_text()) for each in folders))
    assert {name: entry["moved"] for name, entry in told["behaviours"].items()} == {
        name: entry["moved"] for name, entry in again["behaviours"].items()
    }
    assert "Shown are the increases" in (out / told["page"]).read_text()
    assert "net change" in (folders[1] / "shift_net/shift.html").read_text()
    assert not (folders[1] / "shift_decreases").exists()
    assert "From original to what_it_was" in (out / "report.html").read_text()


def test_a_model_of_other_modules_is_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    other = tiny.write_checkpoint(tmp_path / "deep", num_hidden_layers=3)
    path = write(tmp_path, models[0], shift={"traces": "same", "models": {"deep": {"id": str(other)}}})
    with pytest.raises(UserError, match=r"shift\.models\.deep: .* linear modules, .* not the same ones"):
        run(path, tmp_path / "run")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"models": {"a/b": {"id": "x"}}}, "use letters, digits"),
        ({"models": {"small": {"id": "x"}}}, "shift.models: small: a model of this recipe has that name"),
        ({"kind": ["net", "net"]}, "a kind stands twice"),
        ({"kind": "sideways"}, "shift.kind"),
        ({}, "shift: there is no second model; add a plan, variants, distill or models"),
    ],
)
def test_what_is_wrong_with_a_shift(spec: dict[str, Any], said: str, models: tuple[Path, Path], tmp_path: Path) -> None:
    variants = {"small": {"plan": {"default": "w8g16"}}} if "small" in spec.get("models", {}) else {}
    path = write(tmp_path, models[0], shift={"traces": "same", **spec}, variants=variants)
    with pytest.raises(UserError, match=said):
        recipe.load(path)


def test_another_annotation_of_the_same_traces(models: tuple[Path, Path], tmp_path: Path) -> None:
    path = write(tmp_path, models[0], agreement={"annotator": "cues"})
    chosen = recipe.load(path)
    assert [each.name for each in costs.stages(chosen, pipeline.checked(chosen))] == ["importance", "agreement"]
    out = tmp_path / "run"
    found = run(path, out)["agreement"]
    assert found["traces"] == len(tiny.TRACES) and found["behaviours"]
    data = json.loads((out / "agreement/agreement.json").read_text())
    assert data["names"]["second"] == "cues" and data["importance"]["behaviours"] == found["behaviours"]
    before = (out / "summary.json").read_bytes()
    run(path, out)
    assert (out / "summary.json").read_bytes() == before
    write_report(out)
    assert "Another annotation of the same traces" in (out / "report.html").read_text()


def test_an_annotation_that_lacks_a_trace_is_told(models: tuple[Path, Path], tmp_path: Path) -> None:
    few = tiny.write_traces(tmp_path / "few.jsonl", *tiny.TRACES[:2])
    path = write(tmp_path, models[0], agreement={"source": str(few)})
    with pytest.raises(UserError, match=r"agreement: .*few.jsonl: 2 of 4 traces are not annotated there"):
        run(path, tmp_path / "run")


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"agreement": {}}, "agreement: the second annotation is the first"),
        ({"agreement": {"annotator": "cues", "train": ["x"]}}, "agreement: train: annotator cues learns nothing"),
        ({"agreement": {"annotator": "cues"}, "importance": None}, "agreement: it is of the importance's traces"),
    ],
)
def test_what_is_wrong_with_an_agreement(
    parts: dict[str, Any], said: str, models: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        recipe.load(write(tmp_path, models[0], **parts))
