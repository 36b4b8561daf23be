"""The HTTP engine and the benchmarks against a real llama-server with the embedded model, which dies on the way."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mixprec.core.errors import UserError
from mixprec.evaluate import bench
from mixprec.evaluate.engines.base import Generation, Request, Sampling
from mixprec.evaluate.engines.openai import OpenAIEngine, Server
from mixprec.evaluate.engines.transformers import TransformersEngine
from mixprec.evaluate.spec import ProtocolSpec
from mixprec.models import locate
from mixprec.models.load import LoadedModel

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="pip install 'mixprec[llamacpp]'"),
]


@contextmanager
def llama_server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    script = Path(__file__).with_name("llama_server.py")
    command = [sys.executable, str(script), str(locate._bundled_gguf())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip() + "/v1"
        finally:
            process.kill()


def ask(url: str, requests: list[Request], sampling: Sampling) -> dict[str, Generation]:
    engine = OpenAIEngine(Server(url, "smollm2", concurrency=4, retries=2, timeout=300))
    return {each.key: each for each in engine.generate(requests, sampling)}


def test_a_real_server(smollm2: LoadedModel, tmp_path: Path) -> None:
    sampling = Sampling(8, temperature=0)
    requests = [
        Request("paris", "The capital of France is", 1),
        Request("count", "1, 2, 3, 4, 5, 6,", 2),
        Request("chat", "What is 2 + 2?", 3, chat=True),
    ]
    with llama_server() as (_, url):
        served = ask(url, requests, sampling)
        sampled = [ask(url, [requests[0]], Sampling(12, 1.0)) for _ in range(2)]
    local = {each.key: each for each in TransformersEngine(smollm2, 4).generate(requests, sampling)}
    assert "Paris" in served["paris"].output and "Paris" in local["paris"].output
    assert served["count"].output.strip().startswith("7, 8") and local["count"].output.strip().startswith("7, 8")
    assert served["chat"].output
    for key in ("paris", "count"):
        assert (served[key].tokens, served[key].finish) == (8, "length")
        assert served[key].prompt_tokens == local[key].prompt_tokens
    assert sampled[0]["paris"].output == sampled[1]["paris"].output  # the seed goes along


def test_a_real_server_that_dies(tmp_path: Path) -> None:
    rows = [
        {"example_id": i, "premises": f"All {i} are apples.", "conclusion": "Apples are fruits.", "label": "True"}
        for i in range(24)
    ]
    (tmp_path / "folio.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    protocol = ProtocolSpec.model_validate(
        {
            "benchmarks": [{"name": "folio", "source": str(tmp_path / "folio.jsonl")}],
            "seeds": [0],
            "max_new_tokens": 12,
        }
    )
    questions = bench.load_questions(protocol, None)

    def run(url: str, process: subprocess.Popen[str] | None = None) -> dict[str, object]:
        class Dying(OpenAIEngine):
            def generate(
                self, requests: list[Request], sampling: Sampling, on_tokens: Any = None
            ) -> Iterator[Generation]:
                for count, made in enumerate(super().generate(requests, sampling), 1):
                    if process is not None and count == 5:
                        process.kill()
                    yield made

        server = Server(url, "smollm2", concurrency=2, retries=1, pause=0.05, timeout=300)
        return bench.run(lambda: Dying(server), questions, protocol, "server:smollm2", tmp_path / "out", "test")

    with llama_server() as (process, url), pytest.raises(UserError, match=r"can't be reached.*same command again"):
        run(url, process)
    there = (tmp_path / "out" / "folio.jsonl").read_text().count("\n")
    assert 5 <= there < 24
    with llama_server() as (_, url):
        found = run(url)
    assert (tmp_path / "out" / "folio.jsonl").read_text().count("\n") == 24
    assert found["benchmarks"]["folio"]["diagnosis"]["tokens"]["n"] == 24  # type: ignore[index]
