"""A judge end to end: a real llama-server with the embedded model, which dies on the way. Format and resumption alone:
135M parameters can't judge."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

import mixprec as mp
from mixprec.core.errors import UserError
from mixprec.models import locate
from mixprec.results.spans import Spans
from mixprec.traces import spans, store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="pip install 'mixprec[llamacpp]'"),
]

SCRIPT = Path(__file__).parents[1] / "evaluate" / "engines" / "llama_server.py"
#: A model of this size goes on with what it sees, where no template makes a talk of it.
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
PROMPT = "".join(
    f'Text: Wait, {n} is wrong.\nAnswer: ["backtracking"] Wait, {n} is wrong. ["end-section"]\n\n' for n in "129"
)
PROMPT += "Text: {text}\nAnswer:"


class LlamaServer:
    def __init__(self, *template: str) -> None:
        command = [sys.executable, str(SCRIPT), str(locate._bundled_gguf()), *template]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip() + "/v1"

    def __enter__(self) -> LlamaServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_a_real_server_that_dies_and_comes_back(tmp_path: Path) -> None:
    path, out, answers = (tmp_path / name for name in ("traces.jsonl", "spans.jsonl", "spans.answers.jsonl"))
    (tmp_path / "prompt.txt").write_text(PROMPT)
    outputs = [f"Wait, {number} is wrong." for number in range(3, 9)]
    rows = [{"id": str(number), "prompt": "?\n", "output": output} for number, output in enumerate(outputs)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def command(url: str) -> list[str]:
        words = (
            f"annotate {path} --judge {url} --judge-model smollm2 --judge-prompt {tmp_path / 'prompt.txt'} --out {out}"
        )
        settings = "--temperature 0 --max-new-tokens 24 --attempts 2 --concurrency 1 --retries 0 --timeout 300"
        return [sys.executable, "-m", "mixprec", *words.split(), *settings.split()]

    with LlamaServer(TEMPLATE) as server:
        running = subprocess.Popen(command(server.url), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        limit = time.monotonic() + 200
        while not (answers.is_file() and answers.read_text().count("\n") >= 2) and time.monotonic() < limit:
            time.sleep(0.02)
        server.process.kill()
        _, told = running.communicate(timeout=60)
    assert running.returncode == 2 and "same command again: what is finished is kept" in told, told
    kept = answers.read_text().splitlines()
    assert 2 <= len(kept) < 12 and not out.exists()
    with LlamaServer(TEMPLATE) as server:
        done = subprocess.run(command(server.url), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = answers.read_text().splitlines()
    assert lines[: len(kept)] == kept and f"{len(lines)} answers, {len(lines) - len(kept)} of them new" in done.stderr
    found = Spans.load(out)
    said = [each.trace.text[span.start : span.end] for each in found for span in each.spans]
    assert len(found) == 6 and len(said) >= 4 and set(said) <= set(outputs)
    assert all(each.by["prompt_tokens"] > 0 and each.by["tokens"] > 0 for each in found)


def test_our_prompt_and_a_real_server(tmp_path: Path) -> None:
    """Whatever this model says to our prompt is read, counted and kept."""
    path = tiny.write_traces(tmp_path / "traces.jsonl")
    with LlamaServer() as server:
        judge = mp.Judge(server.url, "smollm2", max_new_tokens=60, attempts=1, concurrency=2, timeout=300.0)
        try:
            found = mp.annotate(path, judge=judge, first=2)
            assert all(span.behaviour in spans.ALL_BEHAVIOURS for each in found for span in each.spans)
        except UserError as problem:
            assert str(problem).startswith(f"{path}: no trace has a span of {', '.join(store.BEHAVIOURS)}; skipped")
    rows = [json.loads(line) for line in (tmp_path / "traces.answers.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["judge"] == "smollm2" and row["prompt_tokens"] > 500 for row in rows)
