"""The tasks for lm-eval: what they give a model, how they score, and a run of the real harness."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixprec.core import artifacts
from mixprec.evaluate import benchmarks, existing, lm_eval_tasks, outputs

TASKS = sorted(lm_eval_tasks.FOLDER.glob("*.yaml"))

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed: pip install 'mixprec[lm-eval]'"
)


class Loader(yaml.SafeLoader):
    """Reads !function as the name that stands there."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def read(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader)
    return data


def test_every_benchmark_of_the_paper_is_a_task() -> None:
    papers = [name for name, each in benchmarks.BENCHMARKS.items() if each.digest]  # lm-eval has tasks of others
    assert {path.stem for path in TASKS} == {f"mixprec_{name}" for name in papers}


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_a_task_says_what_the_benchmark_says(path: Path) -> None:
    task = read(path)
    benchmark = benchmarks.find(task["metadata"]["benchmark"])
    assert task["task"] == path.stem == f"mixprec_{benchmark.name}"
    for key in ("custom_dataset", "doc_to_text", "doc_to_target", "process_results"):
        module, _, function = task[key].rpartition(".")
        assert module == lm_eval_tasks.__name__
        assert callable(getattr(lm_eval_tasks, function))
    metrics = {each["metric"] for each in task["metric_list"]}
    assert metrics == ({"em", "f1", "no_answer"} if benchmark.metric == "em_f1" else {"acc", "no_answer"})
    settings = task["generation_kwargs"]
    assert (settings["temperature"], settings["top_p"], settings["max_gen_toks"]) == (0.6, 0.95, 32768)


@needs_lm_eval
def test_rows_and_scores(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXPREC_DATA", str(shared_data))
    asked = benchmarks.load("folio", "data:benchmarks/folio.jsonl")
    docs = lm_eval_tasks.rows("folio", pretrained="a model", revision="of the model")["test"]
    assert [lm_eval_tasks.prompt(doc) for doc in docs] == [question.prompt for question in asked]
    assert [lm_eval_tasks.target(doc) for doc in docs] == [question.answer for question in asked]
    chat = lm_eval_tasks.rows("folio", style="chat")["test"]
    assert chat[0]["prompt"] == asked[0].message
    right, wrong, nothing = f"</think>\n\n**Answer:** {asked[0].answer}", "</think>\n\n**Answer:** True", "</think>\n"
    assert asked[0].answer == "Uncertain"
    assert lm_eval_tasks.accuracy(docs[0], [right]) == {"acc": 1.0, "no_answer": 0.0}
    assert lm_eval_tasks.accuracy(docs[0], [[right, wrong, nothing, nothing]]) == {"acc": 0.25, "no_answer": 0.5}
    words = lm_eval_tasks.rows("musique")["test"]
    assert lm_eval_tasks.overlap(words[5], ["</think>\n\nCapitol Records"]) == {
        "em": 0.0,
        "f1": pytest.approx(0.4),
        "no_answer": 0.0,
    }


@needs_lm_eval
@pytest.mark.slow
def test_the_harness_runs_our_tasks(shared_data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """lm_eval itself, offline, a tiny model, two rows: our prompts go in, our verdicts come out."""
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--limit", "2"]
    command += ["--model_args", f"pretrained={tiny_checkpoint},dtype=float32,add_bos_token=True"]
    command += ["--include_path", str(lm_eval_tasks.FOLDER), "--tasks", "mixprec_folio", "--log_samples"]
    command += ["--gen_kwargs", "max_gen_toks=4", "--output_path", str(tmp_path)]
    environment = {**os.environ, "MIXPREC_DATA": str(shared_data), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    [results] = tmp_path.rglob("results_*.json")
    found = json.loads(results.read_text(encoding="utf-8"))["results"]["mixprec_folio"]
    assert 0.0 <= found["acc,none"] <= 1.0
    [samples] = tmp_path.rglob("samples_*.jsonl")
    asked = benchmarks.load("folio", str(shared_data / "benchmarks" / "folio.jsonl"), limit=2)
    rows = sorted(artifacts.read_jsonl(samples), key=lambda row: row["doc_id"])
    assert [row["arguments"]["gen_args_0"]["arg_0"] for row in rows] == [question.prompt for question in asked]
    assert sum(row["acc"] for row in rows) / 2 == found["acc,none"]
    # mixprec score reads the same file, and says the same of it.
    questions = existing.questions_of("folio", str(shared_data / "benchmarks" / "folio.jsonl"), None)
    again = existing.score_files(outputs.read(samples), {"folio": questions}, None, (), outputs.Options())
    assert again["benchmarks"]["folio"]["accuracy"]["mean"] == found["acc,none"]
    assert again["outputs"]["benchmarks"]["folio"]["files"][0]["matched_by"] == "id and prompt"
    assert again["protocol"]["prompts"] == "paper"
