"""The verb and the recipe's stage, from options to tables, on a tiny model; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from scoring import Tiny
from tiny import write_traces
from typer.testing import CliRunner

from mixprec import recipe
from mixprec.cli import app
from mixprec.core.errors import UserError
from mixprec.models.model import Model
from mixprec.plan import sensitivity
from mixprec.sensitivity import scorers
from mixprec.sensitivity.evidence import Errors, Evidence
from mixprec.sensitivity.passages import from_behaviours
from mixprec.sensitivity.run import Subject, gradient_rows, relative_importance
from mixprec.sensitivity.scorers import Question, damage
from mixprec.sensitivity.spec import SensitivitySpec
from mixprec.traces import store
from mixprec.traces.spans import AnnotatedTrace
from mixprec.walk.losses import Row

RECIPE: dict[str, Any] = {
    "compress": {"method": "gptq", "calibration": {"traces": "t.jsonl", "samples": 2, "tokens": 32}},
    "sensitivity": {"formats": ["w2g16", "w4g16"], "samples": 2},
}


def test_the_verb_writes_tables_of_all_scorers_and_behaviours(tiny: Tiny, tmp_path: Path) -> None:
    traces, out = write_traces(tmp_path / "t.jsonl"), tmp_path / "s"
    options = ["--model", str(tiny.folder), "--traces", str(traces), "--samples", "2", "--tokens", "32"]
    options += ["--format", "w2g16", "--format", "w4g16", "--scored", "2", "--out", str(out)]
    options += ["--behaviour", "backtracking"]
    CliRunner().invoke(app, ["sensitivity", *options], catch_exceptions=False)
    table = sensitivity.load(out / "fisher.json", tiny.inventory)
    assert table.scorer == "fisher" and table.method == "gptq"
    assert all(row["w2g16"] > row["w4g16"] > 0 for row in table.scores.values())
    for name in ("hessian_trace", "gradient_output", "output_error", "imatrix", "awq", "weight_error"):
        for target in ("all", "backtracking"):
            found = sensitivity.load(
                out / (f"{name}.json" if target == "all" else f"{name}_{target}.json"), tiny.inventory
            )
            assert found.target == target
    assert not (out / "first_order.json").exists()
    assert "<title>Predicted damage" in (out / "sensitivity.html").read_text()
    CliRunner().invoke(app, ["sensitivity", *options, "--scorer", "measured"], catch_exceptions=False)
    measured = sensitivity.load(out / "measured.json", tiny.inventory)
    total = {t.scorer: sum(row["w4g16"] for row in t.scores.values()) for t in (table, measured)}
    assert total["fisher"] == pytest.approx(total["measured"], rel=0.6)  # one unit: nats per token
    again = json.loads((out / "fisher.json").read_text())
    CliRunner().invoke(app, ["sensitivity", *options], catch_exceptions=False)
    assert json.loads((out / "fisher.json").read_text()) == again


@pytest.mark.parametrize("verb", ["plan", "explain", "pareto"])
def test_another_models_scores_are_refused_wherever_they_are_read(tiny: Tiny, tmp_path: Path, verb: str) -> None:
    table = sensitivity.Sensitivity(
        model="another",
        identity="a" * 64,
        scorer="fisher",
        target="all",
        method="gptq",
        calibration="b" * 64,
        settings={},
        scores={module.address: {"w2g16": 2.0, "w4g16": 1.0} for module in tiny.inventory.linears},
    )
    sensitivity.save(tmp_path / "other.json", table)
    budget = {"effective_bits": 4, "candidates": ["w2g16", "w4g16"], "scores": str(tmp_path / "other.json")}
    made = {"model": {"id": str(tiny.folder)}, **RECIPE, "sensitivity": None, "plan": {"budget": budget}}
    path = tmp_path / "r.json"
    path.write_text(json.dumps(made), encoding="utf-8")
    options = [verb, str(path), *(["--scores", budget["scores"]] if verb == "pareto" else [])]
    with pytest.raises(
        UserError, match=r"other\.json: the scores are of another with the identity a{12}…, the model here"
    ):
        CliRunner().invoke(app, options, catch_exceptions=False)


def test_behaviours_that_importance_lacks_are_scored_by_all_else(tiny: Tiny, tmp_path: Path) -> None:
    """Only the scorer that needs the importance of a target is refused without it."""
    subject = Subject(Model(tiny.folder), "gptq", None, tmp_path, importance={"modules": [], "behaviours": {}})  # type: ignore[arg-type]
    assert relative_importance(subject, "deduction") is None
    asked = Question(None, None, "deduction", 1.0, None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="spans of what is scored, here deduction"):
        damage("importance", asked)


@pytest.mark.parametrize("scored", [None, {"formats": ["w2g16", "w4g16"], "scorer": "awq"}])
def test_exchange_without_gradients_is_refused(tmp_path: Path, scored: Any) -> None:
    budget = {"effective_bits": 4, "candidates": ["w2g16", "w4g16"], "scores": "t.json", "exchange": {"samples": 2}}
    made = {"model": {"id": "m"}, **RECIPE, "sensitivity": scored, "plan": {"budget": budget}}
    (tmp_path / "r.json").write_text(json.dumps(made), encoding="utf-8")
    with pytest.raises(UserError, match=r"budget\.exchange: .*add sensitivity: \{scorer: fisher"):
        recipe.load(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"compress": {}}, "modules are solved on calibration data"),
        ({"sensitivity": {"formats": ["keep"]}}, "nothing but keep"),
        ({"sensitivity": {"formats": ["w3g64", "w3g64"]}}, "there twice"),
        ({"sensitivity": {"formats": ["w3g64"], "at": "compressed"}}, "don't go together"),
        ({"sensitivity": {"formats": ["w3g64"], "at": "path", "base": "w4g64"}}, "not among formats"),
        ({"sensitivity": {"formats": ["w3g64"], "method": "ggml"}}, "don't go together"),
        ({"sensitivity": {"formats": ["q4_k@0.5"]}}, "method ggml sets no weights to zero"),
        ({"sensitivity": {"formats": ["w9g64"]}}, "w9g64"),
        ({"sensitivity": {"formats": ["w3g64"], "behaviours": ["backtracking"]}}, "add traces"),
        ({"sensitivity": {"formats": ["w3g64"], "scorer": "importance"}}, "needs importance"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_any_work(tmp_path: Path, change: Any, expected: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps({"model": {"id": "m"}, **RECIPE, **change}))
    with pytest.raises(UserError, match=expected):
        recipe.load(path)


def question(**changes: Any) -> Question:
    random = torch.Generator().manual_seed(0)
    rows = [Row("fisher", "all", 0), Row("fisher", "all", 1), Row("kl", "all")]
    shapes = {
        "slope": (3, 2, 3, 4),
        "square": (3, 2, 3, 4),
        "trace": (3, 2, 3),
        "product": (3, 2, 3, 4),
        "output": (3, 2, 4),
    }
    sums = {name: torch.rand(shape, generator=random).double() for name, shape in shapes.items()} | changes
    errors = Errors(*(torch.rand(2, n, generator=random).double() for n in (4, 1, 1, 4, 4, 4)))
    return Question(Evidence(rows, **sums), errors, "all", 10.0, torch.tensor([0.7, 0.3]).double())


def test_scores_are_their_formulas() -> None:
    asked = question()
    known, errors = asked.evidence, asked.errors
    assert known is not None
    for m, c in ((0, 0), (1, 3)):
        fisher = sum(float(known.square[p, m, r, c]) for p in range(3) for r in range(2)) / 2 / 2 / 10
        assert float(damage("fisher", asked)[m, c]) == pytest.approx(fisher)
        slope = abs(sum(float(known.slope[p, m, 2, c]) for p in range(3))) / 10
        assert float(damage("first_order", asked)[m, c]) == pytest.approx(slope)
        trace = sum(float(known.trace[p, m, r]) for p in range(3) for r in range(2)) / 2
        wanted = trace / float(errors.size[m, 0]) * float(errors.weight[m, c]) / 20
        assert float(damage("hessian_trace", asked)[m, c]) == pytest.approx(wanted)
        importance = (0.7, 0.3)[m] * float(errors.weight[m, c]) / float(errors.norm[m, 0])
        assert float(damage("importance", asked)[m, c]) == pytest.approx(importance)
    assert set(scorers.SCORERS) | {"measured", "reap"} == set(scorers.Scorer.__args__)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "losses"),
    [
        ({}, ["fisher"]),
        ({"draws": 2}, ["fisher", "fisher"]),
        ({"scorer": "first_order"}, ["fisher", "loss"]),
        ({"gradients": "text"}, ["loss"]),
        ({"at": "compressed", "base": "w3g64"}, ["fisher", "kl"]),
        ({"at": "path", "base": "w3g64", "gradients": "text"}, ["kl", "loss"]),
    ],
)
def test_every_scorer_has_the_gradients_that_it_needs(change: Any, losses: list[str]) -> None:
    spec = SensitivitySpec.model_validate({"formats": ["w3g64"], **change})
    assert [row.loss for row in gradient_rows(spec, ["all"])] == losses


def test_nan_scores_are_refused() -> None:
    with pytest.raises(UserError, match="NaN"):
        damage("fisher", question(square=torch.full((3, 2, 3, 4), float("nan")).double()))


def test_a_behaviour_without_spans_is_refused(tiny: Tiny) -> None:
    trace = store.Trace("a", "toy", "There were six apples.", " Wait, four.", "")
    found = [AnnotatedTrace(trace, [])]
    with pytest.raises(UserError, match="backtracking: no span in the first 32 tokens of 1 traces"):
        from_behaviours(found, Model(tiny.folder).load().encoder, ["backtracking"], 4, 32, 0)
