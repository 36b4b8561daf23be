"""Budgets in recipes: from scores to a plan that was improved by measurement, and back again without work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from planning import TEXTS

from mixprec import pipeline
from mixprec import recipe as recipes
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.joint import exchange
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.plan import bits
from mixprec.plan.schema import load_plan

BUDGET = {"effective_bits": 4.0, "candidates": list(TEXTS)}


def write(folder: Path, model: Path, **changes: Any) -> Path:
    traces = folder / "traces.jsonl"
    artifacts.write_jsonl(traces, tiny.TRACES)
    data: dict[str, Any] = {
        "model": {"id": str(model)},
        "sensitivity": {"scorer": "fisher", "formats": list(TEXTS), "samples": 3},
        "variants": {
            "uniform": {"plan": {"budget": {**BUDGET, "allocation": "uniform"}}},
            "ours": {"plan": {"budget": {**BUDGET, "exchange": {"samples": 3, "proposals": 4, "margin": 0}}}},
        },
        "compress": {"method": "gptq", "calibration": {"traces": str(traces), "samples": 6, "tokens": 24}},
        "evaluate": {"text": "bundled:held_out", "text_tokens": 64, "text_passages": 2},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data | changes), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("run") / "model", steps=60)


def run(path: Path, out: Path) -> dict[str, Any]:
    return pipeline.Run(recipes.load(path), path.read_text(), "recipe", out, None).run()


def test_a_recipe_spends_a_budget_and_exchanges(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, model)
    monkeypatch.setattr("mixprec.pipeline.run.write_report", lambda _: None)
    summary = run(path, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "variants" / "ours" / "exchange" / "exchange.json").read_text())
    assert found["kl_end"] <= found["kl_start"] and found["steps"]
    inventory = decoder_of(load_config(str(model)))
    plan = load_plan(tmp_path / "out" / "variants" / "ours" / "plan.json", inventory)
    assert bits.account(plan, inventory).effective_bits <= 4.0
    assert {each.why.partition(",")[0] for each in plan.modules.values()} == {"exchange"}
    assert summary["variants"]["uniform"]["effective_bits"] == 4.0
    assert summary["variants"]["ours"]["kl_mean"] > 0
    monkeypatch.setattr(exchange, "exchange", None)
    assert run(path, tmp_path / "out") == summary


def test_passages_that_are_not_there(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, model, sensitivity={"scorer": "fisher", "formats": list(TEXTS), "samples": 5})
    with pytest.raises(UserError, match="6 passages are there, 5 of them are scored"):
        run(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sensitivity": None}, "variant ours: budget.scores: sensitivity is a part of the recipe"),
        ({"sensitivity": {"scorer": "fisher", "formats": ["w3g16"]}}, "ours: budget.candidates: w2g16, w4g16: not in"),
        ({"compress": {"method": "rtn"}}, "sensitivity: modules are solved on calibration data"),
        (
            {"sensitivity": {"formats": list(TEXTS), "method": "rtn"}},
            "variant ours compresses by gptq, sensitivity scores rtn",
        ),
    ],
)
def test_recipes_whose_parts_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipes.load(write(tmp_path, tmp_path, **changes))


def test_what_is_scored_when_it_runs_is_not_explained_before(model: Path, tmp_path: Path) -> None:
    rows = pipeline.explain(recipes.load(write(tmp_path, model)), None)
    assert rows["ours"]["account"] is None
    assert rows["uniform"]["account"].effective_bits == 4.0
