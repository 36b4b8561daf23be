"""``mixprec run`` and ``mixprec bench`` with benchmarks, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from typer.testing import CliRunner

from mixprec import pipeline, recipe
from mixprec.cli import app
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.pipeline import benchmarks
from mixprec.plan.rules import PlanSpec, build_plan

QUESTIONS = [
    {"example_id": i, "premises": f"Apples {i}.", "conclusion": "Four.", "label": label}
    for i, label in enumerate(["True", "False", "Uncertain", "True", "True"])
]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "folio.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return path


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixprec.pipeline.run.write_report", lambda _: None)


def recipe_file(folder: Path, checkpoint: Path, questions: Path, **evaluate: Any) -> Path:
    given = {"benchmarks": [{"name": "folio", "source": str(questions)}], "seeds": [0, 1], "max_new_tokens": 6}
    parts = {"traces": None, "importance": None, "evaluate": given | evaluate}
    parts["variants"] = {
        "uniform": {"plan": {"default": "w2g16"}},
        "original": {"plan": {"default": "keep"}},
    }
    return tiny.write_recipe(folder / "bench.yaml", checkpoint, folder / "unused.jsonl", **parts)


def run(path: Path, out: Path, *overrides: str) -> dict[str, Any]:
    return pipeline.Run(recipe.load(path, overrides), path.read_text(), path.stem, out, None).run()


def test_a_recipe_with_benchmarks_alone(
    tiny_checkpoint: Path, questions: Path, tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe_file(tmp_path, tiny_checkpoint, questions)
    summary = run(path, tmp_path / "run")
    for name in ("uniform", "original"):
        folio = summary["variants"][name]["benchmarks"]["folio"]
        assert (folio["accuracy"]["n"], folio["accuracy"]["seeds"], folio["diagnosis"]["n"]) == (5, 2, 10)
        assert "per_question" not in folio
        saved = json.loads((tmp_path / "run" / "variants" / name / "benchmarks.json").read_text())
        assert len(saved["benchmarks"]["folio"]["per_question"]) == 5
        assert len(list((tmp_path / "run" / "variants" / name / "generations").rglob("folio.jsonl"))) == 1
    assert summary["benchmarks"]["baseline"] == "original"
    assert summary["benchmarks"]["differences"]["uniform"]["folio"]["accuracy"]["n"] == 5
    assert saved["labels"]["compression"] == ""

    # Again: nothing is generated, and the summary is the same.
    monkeypatch.setattr(benchmarks, "make", lambda *_, **__: pytest.fail("generated again"))
    assert run(path, tmp_path / "run") == summary
    # What another protocol made stays beside it.
    monkeypatch.undo()
    monkeypatch.setattr("mixprec.pipeline.run.write_report", lambda _: None)
    run(path, tmp_path / "run", "evaluate.temperature=0")
    assert len(list((tmp_path / "run" / "variants" / "uniform" / "generations").iterdir())) == 2
    monkeypatch.setattr(benchmarks, "make", lambda *_, **__: pytest.fail("generated again"))
    run(path, tmp_path / "run")


def test_bad_questions_are_told_before_anything_is_done(
    tiny_checkpoint: Path, questions: Path, tmp_path: Path, no_report: None
) -> None:
    rows = [dict(row) for row in QUESTIONS]
    del rows[3]["label"]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"folio.jsonl: row 4: column 'label' is missing"):
        run(recipe_file(tmp_path, tiny_checkpoint, questions), tmp_path / "run")
    assert not (tmp_path / "run" / "variants" / "uniform" / "checkpoint").exists()


def test_the_verb(tiny_checkpoint: Path, questions: Path, tmp_path: Path) -> None:
    def bench(out: str, *more: str) -> str:
        words = ["bench", str(tiny_checkpoint), "--benchmark", "folio", "--files", str(questions.parent)]
        words += ["--max-new-tokens", "5", "--seed", "0", "--batch", "2", "--out", str(tmp_path / out), *more]
        result = CliRunner().invoke(app, words)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.output

    text = bench("first")
    assert "FOLIO" in text and "5 × 1" in text
    made = artifacts.read_json(tmp_path / "first" / "benchmarks.json")
    assert made["benchmarks"]["folio"]["diagnosis"]["tokens"]["n"] == 5
    base = str(tmp_path / "first" / "benchmarks.json")
    bench("second", "--temperature", "0", "--baseline", base, "--label", "compression=4-bit AWQ")
    assert json.loads((tmp_path / "second" / "benchmarks.json").read_text())["labels"]["compression"] == "4-bit AWQ"
    both = [str(tmp_path / name) for name in ("first", "second")]
    table = CliRunner().invoke(app, ["tables", *both, "--table", "7", "--format", "markdown"])
    assert table.output.startswith("| Model | Compression | Accuracy: AIME 2024 |")
    assert table.output.count("\n") == 4 and "| 4-bit AWQ |" in table.output
    for words, error in ((["--table", "6"], "--table: 6"), (["--format", "pdf"], "--format: 'pdf'")):
        assert error in str(CliRunner().invoke(app, ["tables", *both, *words]).exception)
    older = tmp_path / "older.json"
    older.write_text(json.dumps({**made, "scoring_rules": 1}))
    with pytest.raises(UserError, match=r"older.json: scored by rules 1, .*scored again"):
        app(["tables", str(tmp_path / "first"), str(older), "--table", "7"], standalone_mode=False)
    assert "no benchmarks.json here" in str(CliRunner().invoke(app, ["tables", str(tmp_path)]).exception)
    with pytest.raises(UserError, match=r"folio.jsonl:1: sampling is"):
        bench("first", "--temperature", "1")
    with pytest.raises(UserError, match=r"--label 'AWQ'"):
        bench("third", "--label", "AWQ")
    with pytest.raises(UserError, match=r"can't be reached .* same command again"):
        bench("served", "--url", "http://127.0.0.1:9/v1", "--retries", "0")


@pytest.mark.parametrize(
    ("plan", "labels"),
    [
        ({"default": "keep"}, {"compression": "", "kept": "", "component": "", "sparsity": "0%"}),
        ({"default": "w3g16", "method": "awq"}, {"compression": "3-bit AWQ", "kept": ""}),
        (
            {"default": "w3g16", "rules": [{"match": "last_mlp", "format": "keep"}]},
            {"compression": "3-bit RTN", "kept": "Final-layer MLP", "component": ""},
        ),
        (
            {"default": "keep", "rules": [{"match": "2_up", "format": "w3g16"}]},
            {"compression": "3-bit RTN", "component": "2_up", "kept": ""},
        ),
        (
            {"default": "keep", "sparsity": 0.5, "method": "sparsegpt"},
            {"compression": "50% sparsegpt", "sparsity": "50%"},
        ),
        ({"default": "keep", "sparsity": "2:4", "method": "wanda"}, {"compression": "2:4 wanda", "sparsity": "2:4"}),
        ({"default": "any3g16", "method": "anyk"}, {"compression": "3-bit ANY3"}),
    ],
)
def test_labels_are_read_off_the_plan(tiny_checkpoint: Path, plan: dict[str, Any], labels: dict[str, str]) -> None:
    inventory = decoder_of(load_config(str(tiny_checkpoint)))
    made = build_plan(PlanSpec.model_validate(plan), inventory, "owner/Tiny-1M", "rtn")
    found = benchmarks.labels_of(made, inventory, "why")
    assert {key: found[key] for key in labels} == labels
    assert (found["model"], found["description"]) == ("Tiny-1M", "why")
    assert benchmarks.baseline_of({"a": 3, "b": 0}) == "b"
    assert benchmarks.baseline_of({"a": 3, "b": 1}) == "a"


@pytest.mark.parametrize(
    ("count", "text"), [(8_030_000_000, "8B"), (134_515_008, "135M"), (1_540_000_000, "1.5B"), (70_553_706_496, "71B")]
)
def test_sizes(count: int, text: str) -> None:
    assert benchmarks._size(count) == text


def test_explain_tells_tokens_before_anything_is_run() -> None:
    text = CliRunner().invoke(app, ["explain", "table4_llama_8b"]).output
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.split()}
    assert rows["folio"][1:] == ["203", "3", "609", f"{609 * 32768 * 3:,}"]
    assert rows["all"][-1] == f"{(90 + 609 + 750 + 300) * 32768 * 3:,}"
    assert "By vllm, paper prompts, temperature 0.6, top-p 0.95, at most 32,768 new tokens" in " ".join(text.split())
