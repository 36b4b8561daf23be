"""Every method in every part of a recipe: it works, or the recipe is refused before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file

from mixprec import pipeline
from mixprec import recipe as recipes
from mixprec.compress.methods import SOLVERS
from mixprec.compress.solving import Scaled, Sharing, Solved, Solver, Task
from mixprec.core.errors import UserError
from mixprec.numerics.groupwise import quantize
from mixprec.plan.methods import METHODS as RECORDS
from mixprec.plan.methods import Method, MethodRecord, Needs

METHODS: tuple[Method, ...] = tuple(RECORDS)
#: Kinds of candidates, two of each, and the methods that can make both. The rows of this model don't fit q4_k.
CHOICES: dict[str, tuple[list[str], set[Method]]] = {
    "grids": (["w3g16", "w4g16"], {"rtn", "gptq", "gptaq", "awq"}),
    "code books": (["any3g16", "any4g16"], {"anyk"}),
    "types of llama.cpp": (["q4_0", "q4_k"], {"ggml"}),
    "sparsities": (["0.5", "2:4"], {"sparsegpt", "wanda", "magnitude"}),
    "both": (["w4g16@0.5", "w3g16@0.5"], {"sparsegpt"}),
    "grids and sparsities": (["w3g16", "0.5"], set()),
}
WORKS = [(method, choices) for choices, (_, makers) in CHOICES.items() for method in METHODS if method in makers]
#: Kinds that one method makes, which takes over whatever the recipe's is.
APART = ("code books", "types of llama.cpp")
REFUSED = [
    (method, choices)
    for choices, (_, makers) in CHOICES.items()
    for method in METHODS
    if method not in makers and choices not in APART
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("methods") / "model", num_hidden_layers=1)


def write(folder: Path, model: Path, method: Method, **parts: Any) -> Path:
    traces = tiny.write_traces(folder / "traces.jsonl")
    data = {
        "model": {"id": str(model)},
        "compress": {"method": method, "calibration": {"traces": str(traces), "samples": 4, "tokens": 16}},
        "evaluate": {"text": "bundled:held_out", "text_tokens": 16, "text_passages": 1},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data | parts), encoding="utf-8")
    return path


def budget(choices: list[str]) -> dict[str, Any]:
    size = {"sparsity": 0.25} if choices[0] == "0.5" else {"effective_bits": 10}
    return {**size, "candidates": [*choices, "keep"], "exchange": {"samples": 2, "proposals": 1, "margin": 0}}


@pytest.mark.parametrize(("method", "choices"), WORKS)
def test_a_method_works_in_sensitivity_ablation_budget_and_exchange(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Method, choices: str
) -> None:
    formats, _ = CHOICES[choices]
    path = write(
        tmp_path,
        model,
        method,
        sensitivity={"scorer": "fisher", "formats": formats, "samples": 1},
        ablation={"each": "1_q", "sets": {"all": "*_*"}, "formats": formats},
        variants={"spent": {"plan": {"budget": budget(formats)}}},
    )
    monkeypatch.setattr("mixprec.pipeline.run.write_report", lambda _: None)
    pipeline.explain(recipes.load(path), None)
    summary = pipeline.Run(recipes.load(path), path.read_text(), "recipe", tmp_path / "out", None).run()
    assert summary["variants"]["spent"]["kl_mean"] >= 0
    assert (tmp_path / "out" / "ablation" / "ablation.json").is_file()


def test_a_new_method_takes_a_record_and_a_solver(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of each weight, rounded; it looks at all that a method can look at, and scales inputs as AWQ does."""
    seen = []

    def solve(task: Task) -> Solved:
        seen.append(task.inputs.statistics.drift is not None)
        return task.rounded(quantize(task.weight / 2, task.grid), task.grid)

    def scale(sharing: Sharing) -> Scaled:
        return Scaled(torch.ones(len(sharing.statistics.mean_abs)), 1.0)

    record = MethodRecord("half", "Half", needs=Needs("always", second_moments=True, original_states=True))
    monkeypatch.setitem(RECORDS, "half", record)
    monkeypatch.setitem(SOLVERS, "half", Solver(solve, scale))
    parts: dict[str, Any] = {
        "sensitivity": {"scorer": "weight_error", "formats": ["w8g16"]},
        "ablation": {"each": "1_q", "sets": {"all": "*_*"}, "formats": ["w8g16"]},
        "variants": {"halved": {"plan": {"default": "w8g16", "rules": [{"match": "1_q", "format": "keep"}]}}},
    }
    path = write(tmp_path, model, "half", **parts)
    monkeypatch.setattr("mixprec.pipeline.run.write_report", lambda _: None)
    pipeline.Run(recipes.load(path), path.read_text(), "recipe", tmp_path / "out", None).run()
    weights = load_file(tmp_path / "out" / "variants" / "halved" / "checkpoint" / "model.safetensors")
    original = load_file(model / "model.safetensors")
    change = {
        name: float((weights[name] / original[name]).median()) for name in weights if name.endswith("proj.weight")
    }
    assert change.pop("model.layers.0.self_attn.q_proj.weight") == 1
    assert all(each == pytest.approx(0.5, abs=0.02) for each in change.values())
    scores = json.loads((tmp_path / "out" / "sensitivity" / "weight_error.json").read_text())["scores"]
    assert len(scores) == 7
    assert set(seen) == {True, False}  # in the plan with the original's states beside it, as a candidate without


@pytest.mark.parametrize(("method", "choices"), REFUSED)
@pytest.mark.parametrize("part", ["sensitivity", "ablation", "budget"])
def test_what_a_method_can_not_make_is_refused_with_the_key(
    model: Path, tmp_path: Path, method: Method, choices: str, part: str
) -> None:
    formats, _ = CHOICES[choices]
    parts: dict[str, Any] = {
        "sensitivity": {"sensitivity": {"formats": formats}},
        "ablation": {"ablation": {"each": "1_q", "formats": formats}},
        "budget": {
            "variants": {"spent": {"plan": {"budget": budget(formats) | {"scores": "x.json", "exchange": None}}}}
        },
    }[part]
    with pytest.raises(UserError, match=r"sensitivity\.formats|ablation\.formats|plan\.budget: candidate"):
        pipeline.explain(recipes.load(write(tmp_path, model, method, **parts)), None)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"ablation": {"each": "99_q", "formats": ["w3g16"]}}, "99_q"),
        (
            {
                "sensitivity": {"formats": ["w3g16", "w4g16"]},
                "variants": {"spent": {"plan": {"budget": {"effective_bits": 2, "candidates": ["w3g16", "w4g16"]}}}},
            },
            "variant spent: plan.budget.effective_bits: 2: no plan takes less than 4",
        ),
    ],
)
def test_what_no_score_can_mend_is_refused_before_scores_are_made(
    model: Path, tmp_path: Path, parts: dict[str, Any], message: str
) -> None:
    chosen = recipes.load(write(tmp_path, model, "gptq", **parts))
    with pytest.raises(UserError, match=message):
        pipeline.explain(chosen, None)
    with pytest.raises(UserError, match=message):
        pipeline.Run(chosen, "", "recipe", tmp_path / "out", None).run()
    assert not (tmp_path / "out").exists()
