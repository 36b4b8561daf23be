"""From traces to a checkpoint and its evaluation in Python: the same numbers as a recipe's run, and nothing printed."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

import mixprec as mp
from mixprec.core.errors import UserError

Quiet = Callable[[], None]


def test_the_whole_way(
    model: mp.Model, traces: Path, calibration: mp.Calibration, scores: mp.Scores, tmp_path: Path
) -> None:
    spans = mp.annotate(traces)
    importance = mp.attribute(model, spans, resamples=0)
    assert set(importance.scores) and len(importance.rows()) == 14 * len(importance.scores)
    plan = mp.plan(model, mp.Budget(effective_bits=4.75, scores=scores, tie="fused", pin={"last_down": "keep"}))
    assert plan.account.effective_bits <= 4.75
    assert {row["format"] for row in plan.rows() if row["label"] == "2_down"} == {"keep"}
    plan.check(format="compressed-tensors")
    checkpoint = mp.compress(model, plan, tmp_path / "out", calibration=calibration, format="compressed-tensors")
    again = mp.Checkpoint.load(tmp_path / "out")
    assert again.plan == plan.content and again.format == "compressed-tensors" and again.bytes == checkpoint.bytes
    assert set(checkpoint.reports) == set(plan.modules)
    (told,) = again.tables().values()  # nothing is known of how modules were solved: their formats
    counted = [(row[0].text, row[1].text, int(row[2].text)) for row in told.rows]
    assert sum(count for *_, count in counted) == len(plan.content.changed) and counted[0][1] == "gptq"
    result = mp.evaluate(checkpoint, reference=model, traces=spans)
    assert 0 < result.kl < 20 and result.main.kl_ci is not None
    assert set(result.per_behaviour) == set(importance.scores)
    same = mp.evaluate(model, reference=model, traces=spans)
    assert same.kl == 0 and same.main.top1_agreement == 1


def test_a_recipe_gives_the_same(model: mp.Model, traces: Path, calibration: mp.Calibration, tmp_path: Path) -> None:
    recipe = tiny.write_recipe(
        tmp_path / "tiny.yaml",
        Path(model.id),
        traces,
        variants={"w3": {"plan": {"default": "w3g16"}}},
        compress={"method": "gptq", "calibration": {"traces": str(traces), "samples": 6, "tokens": 24}},
        importance={"preset": "paper", "resamples": 0},
    )
    run = mp.run(recipe, tmp_path / "run")
    assert run.importance is not None
    assert run.importance.rows() == mp.attribute(model, mp.annotate(traces), resamples=0).rows()
    ours = mp.compress(model, mp.plan(model, "w3g16", method="gptq"), tmp_path / "ours", calibration=calibration)
    theirs = run.checkpoint("w3")
    assert (ours.folder / "model.safetensors").read_bytes() == (theirs.folder / "model.safetensors").read_bytes()
    found = mp.evaluate(ours, model, traces=traces, text=tmp_path / "text.txt", text_tokens=32)
    row = run.summary["variants"]["w3"]
    assert (found.kl, found.perplexity) == (row["kl_mean"], row["perplexity"])
    assert found.text is not None and found.text.kl == row["text"]["kl_mean"]
    assert "w3" in str(run) and run.report.is_file()
    assert mp.report(run.folder).rows() == run.rows() == mp.RunResult.load(run.folder).rows()


def test_python_prints_nothing(tiny_checkpoint: Path, traces: Path, tmp_path: Path) -> None:
    script = f"""
import os, sys
before = dict(os.environ)
import mixprec as mp
assert "torch" not in sys.modules
steps = []
model = mp.Model({str(tiny_checkpoint)!r})
spans = mp.annotate({str(traces)!r}, progress=steps.append)
importance = mp.attribute(model, spans, resamples=0, progress=steps.append)
plan = mp.plan(model, "w3g16", keep=["last_mlp"])
checkpoint = mp.compress(model, plan, {str(tmp_path / "out")!r}, progress=steps.append)
result = mp.evaluate(checkpoint, model, traces=spans, progress=steps.append)
assert {{"annotate", "attribute", "compress", "original", "evaluate"}} <= {{step.what for step in steps}}
assert all(0 <= step.done <= step.total for step in steps)
assert dict(os.environ) == before
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_rules_as_in_a_recipe(model: mp.Model, traces: Path) -> None:
    rules = {"default": "w2g16", "rules": [{"match": {"most_important": "*_down", "count": 1}, "format": "keep"}]}
    with pytest.raises(UserError, match="rank modules by importance"):
        mp.plan(model, rules)
    importance = mp.attribute(model, mp.annotate(traces), resamples=0)
    plan = mp.plan(model, rules, importance=importance)
    assert [row["format"] for row in plan.rows()].count("keep") == 1
    by_importance = mp.Budget(effective_bits=4, scores=importance, candidates=["w2g16", "w4g16", "keep"])
    assert mp.plan(model, by_importance).account.effective_bits <= 4


def test_a_plan_that_no_runtime_loads_says_the_nearest(model: mp.Model) -> None:
    plan = mp.plan(model, "w4g32", keep=["last_up"])
    with pytest.raises(UserError, match="the nearest plan that loads has"):
        plan.check(runtime="vllm")
    nearest = plan.nearest("vllm")
    nearest.check(runtime="vllm")
    assert nearest.modules != plan.modules


def test_plans_are_saved_and_read(model: mp.Model, tmp_path: Path) -> None:
    plan = mp.plan(model, "w4g16", keep=["1_attn"])
    plan.save(tmp_path / "plan.json")
    again = mp.Plan.load(model, tmp_path / "plan.json")
    assert again.content == plan.content and again.rows() == plan.rows()
    assert "effective bits" in str(again) and "w4g16" in again._repr_html_()


# What is refused


def test_the_plan_of_another_model(model: mp.Model, other: mp.Model, tmp_path: Path) -> None:
    plan = mp.plan(other, "w3g16")
    with pytest.raises(UserError, match=r"plan: is for .*other with the identity .*make it again for this model"):
        mp.compress(model, plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_scores_of_another_model(other: mp.Model, scores: mp.Scores) -> None:
    with pytest.raises(UserError, match=r"scores: the scores are of .* with the identity"):
        mp.plan(other, mp.Budget(effective_bits=4.0, scores=scores))


def test_the_calibration_of_another_tokenizer(
    model: mp.Model, calibration: mp.Calibration, traces: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model.id, tmp_path / "renamed"))
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    names = {'"Ġapples"': '"Ġpears"', '"Ġpears"': '"Ġapples"'}
    swapped = re.sub("|".join(names), lambda found: names[found[0]], text)
    assert swapped != text
    (folder / "tokenizer.json").write_text(swapped, encoding="utf-8")
    renamed = mp.Model(folder)
    calibration.save(tmp_path / "c.safetensors")
    for given in (calibration, mp.Calibration.load(tmp_path / "c.safetensors")):
        with pytest.raises(UserError, match="calibration: its tokens are of another tokenizer than"):
            mp.compress(renamed, mp.plan(renamed, "w3g16", method="gptq"), tmp_path / "out", calibration=given)
        with pytest.raises(UserError, match="calibration: its tokens are of another tokenizer than"):
            mp.sensitivity(renamed, given, ["w3g16"])
    assert not (tmp_path / "out").exists()


def test_the_scores_of_another_method(model: mp.Model, scores: mp.Scores) -> None:
    with pytest.raises(UserError, match="the scores are of the error of gptq, the plan compresses by rtn"):
        mp.plan(model, mp.Budget(effective_bits=4.0, scores=scores), method="rtn")


def test_a_plan_of_another_version(model: mp.Model, tmp_path: Path) -> None:
    mp.plan(model, "w3g16").save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text().replace('"schema_version": 1', '"schema_version": 2')
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match=r"plan\.json: schema_version"):
        mp.Plan.load(model, tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda model, _: mp.plan(model, "w33"), "mixprec plan: default: format 'w33' is not known"),
        (lambda model, _: mp.plan(model, mp.Budget(effective_bits=3)), "Budget: no candidates"),
        (
            lambda model, _: mp.plan(model, mp.Budget(effective_bits=3, candidates=["w2g16", "w4g16"])),
            "it needs scores, but there are none",
        ),
        (
            lambda model, c: mp.plan(model, mp.Budget(effective_bits=9, bytes=9, candidates=["w2g16", "w4g16"])),
            "a budget has one size",
        ),
        (lambda model, c: mp.sensitivity(model, c, ["w3g16"], scorer="guess"), "mixprec sensitivity: scorer"),
        (lambda model, c: mp.sensitivity(model, c, ["w3g16"], method="magic"), "mixprec sensitivity: method"),
        (lambda model, _: mp.calibrate(model), "no sources; give a text, traces or a dataset"),
        (lambda model, _: mp.evaluate(model, model), "nothing to evaluate on"),
        (lambda model, _: mp.attribute(model, mp.Spans(()), preset="mine"), "mixprec attribute: preset"),
        (lambda model, _: mp.bench(model, "x", benchmarks=["arc"]), "mixprec bench: benchmarks"),
        (lambda model, _: mp.bench(model, "x", tempo=1), "mixprec bench: tempo"),
        (lambda model, _: mp.bench(model, "x", benchmarks=[]), "mixprec bench: benchmarks: none is named"),
        (lambda model, _: mp.plan(model, "w3g16", keep="last_mlp"), "keep: 'last_mlp': give a list of text"),
        (lambda model, _: mp.compress(model, "w3g16", "x"), "mixprec compress: plan: 'w3g16': give mixprec.Plan"),
        (lambda model, _: mp.compress(model, mp.plan(model, "w3g16"), "x", memory_gb=0), "memory_gb: 0 is not greater"),
        (lambda model, _: mp.traces(model, "x", "y", temperature=-1), "mixprec traces: temperature: -1"),
        (lambda model, _: mp.traces(model, "x", "y", batch=0), "mixprec traces: engine.batch: 0"),
        (lambda model, _: mp.save_reference(model, "x", kept=0), "mixprec save_reference: kept: 0 is not greater"),
        (lambda model, _: mp.quantize_(model, "w3g16"), "quantize_: Model is no PreTrainedModel"),
        (lambda model, _: mp.attribute(model, mp.Spans(()), progress=3), "progress: 3: give a function or None"),
        (lambda model, _: mp.Importance.load(None), "mixprec Importance.load: path: None: give text or a path"),
        (
            lambda model, _: mp.plan(model, "w3g16").check("vllm", version=3),
            "check: version: 3: give text or None",
        ),
        (lambda model, _: mp.Model(None), "mixprec Model: id: None: give text or a path"),
        (lambda model, _: mp.Server("http://127.0.0.1", "m", timeout=0), "mixprec Server: timeout: 0"),
        (lambda model, _: mp.Server("http://127.0.0.1", "m", retries=-1), "mixprec Server: retries: -1"),
        (lambda model, _: mp.run("no_such_recipe"), "no_such_recipe: no such recipe"),
        (lambda model, _: mp.report("no_such_folder"), "no_such_folder: no such folder"),
        (lambda model, _: mp.Checkpoint.load(model.id), "mixprec.compress writes checkpoints"),
    ],
)
def test_bad_arguments_are_told_by_name(
    call: Callable[[Any, Any], Any], told: str, model: mp.Model, calibration: mp.Calibration
) -> None:
    with pytest.raises(UserError) as caught:
        call(model, calibration)
    assert told in str(caught.value)


# Inside a running event loop, as in a notebook


def test_everything_works_in_a_running_loop(model: mp.Model, traces: Path, tmp_path: Path) -> None:
    async def cell() -> mp.Evaluation:
        spans = mp.annotate(traces)
        mp.attribute(model, spans, resamples=0)
        made = mp.compress(model, mp.plan(model, "w3g16"), tmp_path / "out")
        return mp.evaluate(made, model, traces=spans)

    assert asyncio.run(cell()).kl > 0


def test_a_server_is_asked_in_a_running_loop(tmp_path: Path) -> None:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            choice = {"index": 0, "text": "so</think>\n\n**Answer:** 204", "finish_reason": "stop"}
            body = json.dumps({"choices": [choice], "usage": {"completion_tokens": 5, "prompt_tokens": 9}}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    Thread(target=server.serve_forever, daemon=True).start()
    rows = [{"ID": f"2024-I-{i}", "Problem": f"How many are {i}?", "Answer": 204} for i in range(2)]
    (tmp_path / "aime_2024.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = mp.Server(f"http://127.0.0.1:{server.server_port}/v1", "r1", retries=0)

    async def cell() -> mp.BenchResult:
        return mp.bench(asked, tmp_path / "out", benchmarks=["aime_2024"], files=tmp_path, seeds=(0,))

    result = asyncio.run(cell())
    server.shutdown()
    assert result.scores["aime_2024"]["accuracy"].mean == 1.0
    again = mp.BenchResult.load(tmp_path / "out")
    assert again.scores == result.scores and again.name == "r1" and "AIME" in str(again)
