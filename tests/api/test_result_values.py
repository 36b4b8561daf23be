"""Results as values: saved and loaded again, printed, shown in a notebook, as rows; other versions are refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from mixprec.calibration import data as calibrating
from mixprec.calibration.spec import CalibrationSpec
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.plan.sensitivity import Sensitivity
from mixprec.results.base import Result
from mixprec.results.calibration import Calibration
from mixprec.results.evaluation import Evaluation
from mixprec.results.importance import Importance
from mixprec.results.scores import Scores
from mixprec.results.spans import Spans
from mixprec.traces import spans, store

KINDS = {"q": "self_attn.q_proj", "up": "mlp.up_proj"}


@pytest.fixture
def importance() -> Importance:
    listed = [
        {"address": f"model.layers.{layer}.{path}", "label": f"{layer + 1}_{kind}", "layer": layer + 1, "kind": kind}
        for layer in range(3)
        for kind, path in KINDS.items()
    ]
    scores = [0.5, 0.1, 0.2, 0.9, 0.05, 0.25]
    behaviours = {"backtracking": {"traces": 2, "spans": 3, "tokens": 40, "scores": scores}}
    behaviours["adding_knowledge"] = {"traces": 0, "spans": 0, "tokens": 0, "scores": [0.0] * 6}
    return Importance({"schema_version": 1, "preset": "paper", "modules": listed, "behaviours": behaviours})


@pytest.fixture
def scores() -> Scores:
    rows = {f"model.layers.{layer}.mlp.up_proj": {"w2g64": 0.5 * layer, "w4g64": 0.01} for layer in range(3)}
    table = Sensitivity(model="m", identity="id", scorer="fisher", method="gptq", scores=rows)
    return Scores({"all": table, "backtracking": table.model_copy(update={"target": "backtracking"})})


@pytest.fixture
def evaluation() -> Evaluation:
    row = {
        "tokens": 100, "passages": 2, "perplexity": 12.5, "kl_mean": 0.25, "kl_mean_ci": [0.2, 0.3], "kl_median": 0.1,
        "kl_p99": 2.0, "top1_agreement": 0.8,
    }  # fmt: skip
    behaviours = {"backtracking": row | {"tokens": 10, "kl_mean": 0.5, "kl_mean_ci": None}, "adding_knowledge": None}
    data = {"schema_version": 1, "traces": row, "text": None, "behaviours": behaviours, "kl_by_passage": []}
    return Evaluation("3 bits", data, {"cut": 1})


@pytest.fixture
def calibration(tmp_path: Path) -> Calibration:
    spec = CalibrationSpec.model_validate({"traces": str(tiny.write_traces(tmp_path / "t.jsonl")), "samples": 4})
    spec = spec.model_copy(update={"tokens": 24})
    found = calibrating.load(spec, tiny.encoder(), str, 256)
    return Calibration(found.tokens, found.weights, found.described, found.digest, ("too few tokens",))


def check_shown(result: Result, *texts: str) -> None:
    for text in texts:
        assert text in str(result)
        assert text in result._repr_html_()
    assert len(repr(result)) < 200 and "\n" not in repr(result)
    json.dumps(result.rows(), allow_nan=False)


def test_importance(importance: Importance, tmp_path: Path) -> None:
    importance.save(tmp_path / "importance.json")
    again = Importance.load(tmp_path)
    assert again.rows() == importance.rows() and again.scores == importance.scores
    assert set(again.scores) == {"backtracking"}
    assert [row["label"] for row in again.top(2).rows()] == ["2_up", "1_q"]
    assert len(again.rows()) == 6 and again.rows()[3]["relative"] == pytest.approx(0.9 / 2.0)
    check_shown(again, "2_up", "Backtracking")
    check_shown(again.top(1), "2_up")
    assert "1_q" not in str(again.top(1))
    assert importance.heatmap()._repr_png_().startswith(b"\x89PNG")
    assert {path.suffix for path in importance.heatmap().save(tmp_path / "map")} == {".png", ".svg"}


def test_scores(scores: Scores, tmp_path: Path) -> None:
    paths = scores.save(tmp_path)
    assert [path.name for path in paths] == ["fisher.json", "fisher_backtracking.json"]
    assert len(scores.rows()) == 2 * 3 * 2
    assert scores.rows()[2]["damage"] == 0.5
    check_shown(scores, "3_up", "fisher, Backtracking")
    assert "1_up" not in str(scores.top(2))
    assert scores.heatmap("backtracking")._repr_png_().startswith(b"\x89PNG")


def test_evaluation(evaluation: Evaluation, tmp_path: Path) -> None:
    evaluation.save(tmp_path / "result.json")
    again = Evaluation.load(tmp_path / "result.json", "3 bits")
    assert (again.kl, again.main.kl_ci, again.perplexity) == (0.25, (0.2, 0.3), 12.5)
    assert set(again.per_behaviour) == {"backtracking"}
    assert again.per_behaviour["backtracking"].kl_ci is None
    assert again.text is None
    check_shown(evaluation, "traces", "backtracking", "0.250", "[0.200, 0.300]", "cut")
    assert [row["tokens of"] for row in again.rows()] == ["traces", "backtracking"]


def test_calibration(calibration: Calibration, tmp_path: Path) -> None:
    calibration.save(tmp_path / "calibration.safetensors")
    again = Calibration.load(tmp_path / "calibration.safetensors")
    assert torch.equal(again.tokens, calibration.tokens) and again.weights is None
    assert (again.described, again.digest, again.warnings) == (
        calibration.described, calibration.digest, calibration.warnings
    )  # fmt: skip
    check_shown(again, "4 samples of 24 tokens", "traces t.jsonl", "too few tokens")


def test_spans(tmp_path: Path) -> None:
    source = tiny.write_traces(tmp_path / "traces.jsonl")
    found = Spans(tuple(spans.char_spans(trace, "paper") for trace in store.load(str(source))))
    found.save(tmp_path / "spans.jsonl")
    again = Spans.load(tmp_path / "spans.jsonl")
    assert again.rows() == found.rows() and len(again) == len(list(again)) == 4
    assert "let me go back" in " ".join(row["text"] for row in again.rows() if row["behaviour"] == "backtracking")
    check_shown(again, "4 traces", "backtracking")


@pytest.mark.parametrize("kind", [Importance, Evaluation])
def test_other_versions_are_refused(kind: Any, importance: Importance, evaluation: Evaluation, tmp_path: Path) -> None:
    made: Any = importance if kind is Importance else evaluation
    path = tmp_path / "artifact.json"
    for version in (0, 2, None, "1"):
        artifacts.write_json(path, {**made.data, "schema_version": version})
        with pytest.raises(UserError, match=r"artifact\.json: schema_version is .*, this mixprec reads 1"):
            kind.load(path)
    artifacts.write_json(path, {"schema_version": 1})
    with pytest.raises(UserError, match=r"artifact\.json"):
        kind.load(path)


def test_a_calibration_of_another_version_is_refused(calibration: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    artifacts.save_tensors(path, {"tokens": calibration.tokens}, {"artifact": "calibration", "schema_version": 2})
    with pytest.raises(UserError, match=r"other\.safetensors: holds no calibration set of schema 1"):
        Calibration.load(path)
    artifacts.save_tensors(path, {"tokens": calibration.tokens})
    with pytest.raises(UserError, match=r"make it with mixprec\.calibrate"):
        Calibration.load(path)


def test_without_pandas_the_command_is_told(importance: Importance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pip install 'mixprec\[pandas\]'"):
        importance.to_pandas()


def test_rows_as_a_frame(importance: Importance) -> None:
    pandas = pytest.importorskip("pandas")
    frame = importance.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns)[:2] == ["behaviour", "address"] and len(frame) == 6


def test_nothing_is_markup(evaluation: Evaluation) -> None:
    named = Evaluation("<b>[red]model", evaluation.data)
    assert "<b>[red]model" in str(named)
    assert "&lt;b&gt;[red]model" in named._repr_html_()
