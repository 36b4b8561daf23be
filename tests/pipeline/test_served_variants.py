"""Benchmarks that a server answers in a variant's place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from answering import serving

import mixprec as mp
from mixprec import pipeline, recipe
from mixprec.core.errors import UserError
from mixprec.pipeline import gpus
from mixprec.pipeline.costs import stages
from mixprec.pipeline.expected import expected
from mixprec.pipeline.jobs import Job, gpus_of


def written(folder: Path, checkpoint: Path, url: str, variants: dict[str, Any], **evaluate: Any) -> Path:
    questions = folder / "folio.jsonl"
    rows = [{"example_id": i, "premises": f"Apples {i}.", "conclusion": "Four.", "label": "True"} for i in range(3)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {
        "benchmarks": [{"name": "folio", "source": str(questions)}],
        "seeds": [0],
        "max_new_tokens": 5,
        "servers": {"served": {"url": url, "model": "theirs", "retries": 0}},
    }
    parts = {"traces": None, "importance": None, "evaluate": asked | evaluate, "variants": variants}
    return tiny.write_recipe(folder / "served.yaml", checkpoint, folder / "unused.jsonl", **parts)


SERVED = {"served": {"plan": {"default": "keep"}}}
BOTH = {"here": {"plan": {"default": "w2g16"}}, **SERVED}


def answer(*_: Any) -> tuple[int, Any, dict[str, str]]:
    return 200, {"choices": [{"text": "So it is.</think> True", "finish_reason": "stop"}]}, {}


def test_a_server_answers_for_one_variant_and_the_engine_for_the_other(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k" * 20)
    with serving() as (fake, url):
        fake.reply = answer
        path = written(tmp_path, tiny_checkpoint, url, BOTH)
        done = mp.run(path, out=tmp_path / "run")
        assert len(fake.bodies) == 3 and {each["model"] for each in fake.bodies} == {"theirs"}
        assert fake.headers[0]["Authorization"] == "Bearer " + "k" * 20
        rows = done.summary["variants"]
        assert rows["served"]["benchmarks"]["folio"]["accuracy"]["mean"] == 1
        assert rows["here"]["benchmarks"]["folio"]["accuracy"]["mean"] == 0
        mp.run(path, out=tmp_path / "run")
        assert len(fake.bodies) == 3  # what is there is kept
        mp.run(path, out=tmp_path / "run", change=["evaluate.servers.served.concurrency=1"])
        assert len(fake.bodies) == 3
        mp.run(path, out=tmp_path / "run", change=["evaluate.servers.served.model=another"])
        assert len(fake.bodies) == 6


def test_what_is_expected_of_each_variant(tiny_checkpoint: Path, tmp_path: Path) -> None:
    chosen = recipe.load(written(tmp_path, tiny_checkpoint, "http://x/v1", BOTH))
    found = pipeline.checked(chosen)
    seconds = dict(expected(chosen, found))
    (here,) = (each.seconds for each in stages(chosen, found) if each.name == "benchmarks")
    assert here is not None and seconds["benchmarks/here"] == here and seconds["benchmarks/served"] is None


def test_a_server_that_is_down_stops_nothing_that_is_done(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = written(tmp_path, tiny_checkpoint, "http://127.0.0.1:9/v1", BOTH)
    with pytest.raises(UserError, match=r"127.0.0.1:9"):
        mp.run(path, out=tmp_path / "run")
    assert (tmp_path / "run" / "variants" / "here" / "benchmarks.json").is_file()


def test_nothing_of_the_model_but_its_configuration_is_needed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    alone = recipe.load(written(tmp_path, tiny_checkpoint, "http://x/v1", SERVED))
    for chosen in (alone, recipe.load(recipe.catalogue()["paper/table1_r1"])):
        found = pipeline.checked(chosen)
        assert gpus.downloads(chosen, found) == {}
        (stage,) = stages(chosen, found)
        assert stage.name.startswith("benchmarks ") and stage.seconds is None and "by a server" in stage.work
        assert gpus_of(chosen, Job("benchmarks", stage.name.split()[1])) == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"servers": {"other": {"url": "http://x/v1", "model": "m"}}}, "evaluate.servers: other is no variant"),
        ({"servers": {"served": {"url": "http://x/v1"}}}, "evaluate.servers.served.model"),
        ({"servers": {"served": {"url": "http://x/v1", "model": "m", "key_variable": "AWS_SECRET"}}}, "AWS_SECRET"),
        ({"servers": {"served": {"url": "http://x/v1", "model": "m", "timeout": float("inf")}}}, "timeout"),
        ({"protocol": "likelihood"}, "a server gives no logits"),
        ({"thinking_budget": 3}, "a server doesn't stop a thinking"),
        ({"benchmarks": [], "text": "bundled:held_out"}, "they answer benchmarks, and none is given"),
    ],
)
def test_what_is_refused(tiny_checkpoint: Path, tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        recipe.load(written(tmp_path, tiny_checkpoint, "http://x/v1", SERVED, **change))


def test_a_judges_key_is_an_api_key(tiny_checkpoint: Path, tmp_path: Path) -> None:
    judge = {"url": "http://x/v1", "model": "m", "key_variable": "HOME"}
    traces = {"source": str(tmp_path / "t.jsonl"), "judge": judge}
    path = tiny.write_recipe(tmp_path / "r.yaml", tiny_checkpoint, tmp_path / "t.jsonl", traces=traces)
    with pytest.raises(UserError, match="HOME: a recipe can send no variable away"):
        recipe.load(path)
