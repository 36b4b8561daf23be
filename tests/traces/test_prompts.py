"""Prompts of any file, and traces from them by any engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from answering import Fake, serving

import mixprec as mp
from mixprec.core import seals
from mixprec.evaluate.engines.openai import Server
from mixprec.traces import store
from mixprec.traces.prompts import load_prompts

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}, {"from": "human", "value": "2 + 2?"}]


def write(path: Path, *rows: dict[str, Any], lines: bool = True) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("lines", [True, False])
def test_texts_messages_and_sharegpt(tmp_path: Path, lines: bool) -> None:
    answered = [*SHAREGPT, {"from": "gpt", "value": "4"}]
    rows = [{"id": 1, "prompt": "a"}, {"id": "b", "messages": CHAT}, {"id": "c", "conversations": answered}]
    found = load_prompts(write(tmp_path / "p.json", *rows, lines=lines))
    assert found[0] == {"id": "1", "dataset": "", "prompt": "a"}
    assert found[1].get("messages") == CHAT and found[1]["prompt"] == "Be brief.\n\n2 + 2?"
    said = [(turn["role"], turn["content"]) for turn in found[2].get("messages", ())]
    assert said == [("user", "Hi"), ("assistant", "Yes?"), ("user", "2 + 2?")]  # without the answer


def test_other_keys_and_no_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"question": "a", "set": "x"}, {"question": "b", "set": "x"})
    found = load_prompts(path, {"prompt": "question", "dataset": "set"})
    assert [(row["id"], row["dataset"], row["prompt"]) for row in found] == [("1", "x", "a"), ("2", "x", "b")]


@pytest.mark.parametrize(
    ("rows", "keys", "message"),
    [
        ([{"question": "a"}], {}, "prompt 1: key 'prompt' is missing .* the row has question; say which key"),
        ([{"prompt": "a", "id": "x"}, {"prompt": "b"}], {}, "prompt 2: key 'id' is missing, other rows have it"),
        ([{"prompt": "a"}], {"id": "uid"}, "prompt 1: key 'uid' is missing"),
        ([{"prompt": "a", "id": 1.5}], {}, "no text and no number"),
        ([{"prompt": "a"}], {"text": "prompt"}, "--key text=…: there are id, dataset, prompt, messages"),
        ([{"messages": [{"role": "tool", "content": "x"}]}], {}, "turn 1: role 'tool'; known are"),
        ([{"messages": [{"role": "assistant", "content": "x"}]}], {}, "no turn by a user"),
        ([{"messages": [{"role": "user", "content": [{"type": "image"}]}]}], {}, "only conversations in text"),
        ([{"messages": ["x"]}], {}, "turn 1: no object with role and content"),
        ([], {}, "no prompts in this file"),
    ],
)
def test_what_is_refused(tmp_path: Path, rows: list[dict[str, Any]], keys: dict[str, str], message: str) -> None:
    with pytest.raises(mp.UserError, match=message):
        load_prompts(write(tmp_path / "p.jsonl", *rows, lines=False), keys)


TEMPLATE = (
    "<s>{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A tiny model with a chat template that knows enable_thinking."""
    loaded = tiny.build()
    loaded.tokenizer.chat_template = TEMPLATE
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def made(path: Path) -> dict[str, store.Trace]:
    return {trace.id: trace for trace in store.load(str(path))}


def test_conversations_and_template_arguments(model: str, tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", {"id": "a", "messages": CHAT}, {"id": "b", "prompt": "2 + 2?"})
    out = tmp_path / "traces.jsonl"
    more: dict[str, Any] = {"max_new_tokens": 4, "chat_template": True}
    mp.traces(model, prompts, out, **more)
    assert made(out)["a"].prompt == "<s>[system]Be brief.[user]2 + 2?"
    assert made(out)["b"].prompt == "<s>[user]2 + 2?"
    with pytest.raises(mp.UserError, match=r"was made with template \{\}, this run has \{'enable_thinking': False\}"):
        mp.traces(model, prompts, out, template={"enable_thinking": False}, **more)
    mp.traces(model, prompts, tmp_path / "short.jsonl", template={"enable_thinking": False}, **more)
    assert made(tmp_path / "short.jsonl")["b"].prompt == "<s>[user]2 + 2?<think></think>"
    with pytest.raises(mp.UserError, match=r"template argument thinking: .* it uses enable_thinking"):
        mp.traces(model, prompts, tmp_path / "no.jsonl", template={"thinking": False}, **more)
    for name in ("messages", "tokenize", "add_generation_prompt"):
        with pytest.raises(mp.UserError, match=rf"template argument {name}: .* sets it itself; leave it out"):
            mp.traces(model, prompts, tmp_path / "no.jsonl", template={name: True}, **more)
    with pytest.raises(mp.UserError, match="'a' is a conversation, which needs a chat template"):
        mp.traces(model, prompts, tmp_path / "no.jsonl", max_new_tokens=4)
    plain = write(tmp_path / "q.jsonl", {"prompt": "x"})
    with pytest.raises(mp.UserError, match="template arguments are for a chat template"):
        mp.traces(model, plain, tmp_path / "no.jsonl", template={"enable_thinking": True}, max_new_tokens=4)


def test_files_of_earlier_versions_go_on(model: str, tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", {"id": "a", "prompt": "x"}, {"id": "b", "prompt": "y"})
    out = tmp_path / "traces.jsonl"
    mp.traces(model, prompts, out, max_new_tokens=4)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0]["made"].pop("template") == {}
    write(out, seals.content(rows[0]))
    out.write_text(out.read_text() + "\n")
    assert mp.traces(model, prompts, out, max_new_tokens=4).count == 2
    assert [json.loads(line)["output"] for line in out.read_text().splitlines()] == [row["output"] for row in rows]


@pytest.fixture
def fake() -> Iterator[tuple[Fake, str]]:
    with serving() as (state, url):
        state.reply = lambda body, _: (
            200,
            {
                "choices": [
                    {"text": "Four.", "finish_reason": "stop"}
                    if "prompt" in body
                    else {"message": {"reasoning_content": "Hm.", "content": "Four."}, "finish_reason": "stop"}
                ]
            },
            {},
        )
        yield state, url


def test_a_server_with_its_own_template(fake: tuple[Fake, str], tmp_path: Path) -> None:
    state, url = fake
    prompts = write(tmp_path / "p.jsonl", {"id": "a", "messages": CHAT})
    out = tmp_path / "traces.jsonl"
    server = Server(url, "big")
    mp.traces(server, prompts, out, chat_template=True, template={"enable_thinking": True}, max_new_tokens=9)
    assert state.paths == ["/v1/chat/completions"] and state.bodies[0]["messages"] == CHAT
    assert state.bodies[0]["chat_template_kwargs"] == {"enable_thinking": True}
    (trace,) = made(out).values()
    assert trace == store.Trace("a", "", "Be brief.\n\n2 + 2?", "<think>\nHm.\n</think>\n\nFour.")
    mp.traces(server, prompts, out, chat_template=True, template={"enable_thinking": True}, max_new_tokens=9)
    assert len(state.bodies) == 1  # it is there


def test_a_server_and_the_template_filled_in_here(fake: tuple[Fake, str], model: str, tmp_path: Path) -> None:
    state, url = fake
    prompts = write(tmp_path / "p.jsonl", {"id": "a", "messages": CHAT})
    mp.traces(Server(url, "big"), prompts, tmp_path / "t.jsonl", chat_template=True, tokenizer=model)
    assert state.paths == ["/v1/completions"]
    assert state.bodies[0]["prompt"] == "[system]Be brief.[user]2 + 2?"  # the server puts BOS in front
    assert made(tmp_path / "t.jsonl")["a"].prompt == "<s>[system]Be brief.[user]2 + 2?"


def test_prompts_of_a_benchmark(fake: tuple[Fake, str], tmp_path: Path) -> None:
    state, url = fake
    rows = [{"ID": f"2024-{n}", "Problem": f"Find {n}.", "Answer": n, "Solution": ""} for n in (1, 2)]
    write(tmp_path / "aime_2024.jsonl", *rows)
    mp.traces(Server(url, "big"), "benchmark:aime_2024", tmp_path / "t.jsonl", files=tmp_path, first=1)
    assert state.bodies[0]["prompt"] == "Find 1.\n<think>\n"
    assert list(made(tmp_path / "t.jsonl")) == ["aime_2024/2024-1"]
    with pytest.raises(mp.UserError, match="there are aime_2024"):
        mp.traces(Server(url, "big"), "benchmark:aime", tmp_path / "u.jsonl")


def test_what_a_model_wrote_calibrates_it(model: str, tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", *({"id": str(n), "prompt": f"There were {n} apples."} for n in range(4)))
    mp.traces(model, prompts, tmp_path / "own.jsonl", max_new_tokens=48, temperature=1.0, top_p=1.0)
    found = mp.calibrate(model, traces=tmp_path / "own.jsonl", samples=4, tokens=32)
    assert tuple(found.tokens.shape) == (4, 32)
    recipe = tmp_path / "recipe.yaml"
    calibration = {"traces": str(tmp_path / "own.jsonl"), "samples": 4, "tokens": 32}
    recipe.write_text(
        json.dumps(
            {
                "title": "own",
                "model": {"id": model},
                "compress": {"method": "gptq", "calibration": calibration},
                "plan": {"default": "w4g16"},
            }
        )
    )
    mp.run(recipe, out=tmp_path / "run")
    said = [path for path in (tmp_path / "run").rglob("*.json") if '"name": "own.jsonl"' in path.read_text()]
    assert said  # the checkpoint's provenance names what it was calibrated on
