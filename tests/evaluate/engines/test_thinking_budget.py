"""Thinking budgets: where they cut, what goes on behind them, and who refuses them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tiny

import mixprec as mp
from mixprec.core.errors import UserError
from mixprec.evaluate import bench
from mixprec.evaluate.engines import vllm
from mixprec.evaluate.engines.base import Generation, Request, Sampling
from mixprec.evaluate.engines.budget import OPENING, Budget, Watch
from mixprec.evaluate.engines.openai import Server
from mixprec.evaluate.engines.transformers import TransformersEngine
from mixprec.evaluate.generations import GenerationFile, Key, Origin
from mixprec.evaluate.spec import ProtocolSpec
from mixprec.models.load import LoadedModel

OPENED = "There were 4 apples.\n<think>\n"
FORCED = "\n</think>\n\n"


def watch(tokens: int, prompt: str = OPENED) -> Watch:
    """Over characters as tokens."""
    return Watch(Budget(tokens), prompt, lambda ids: "".join(map(chr, ids)), lambda text: [*map(ord, text)], "q")


def cut_at(text: str, tokens: int, prompt: str = OPENED) -> int | None:
    """Behind how many characters a thinking is ended."""
    one = watch(tokens, prompt)
    for count in range(1, len(text) + 1):
        if found := one.after([*map(ord, text[:count])]):
            assert "".join(map(chr, found)) == FORCED and one.cut
            assert not any(one.after([*map(ord, text[:more])]) for more in range(count, len(text)))
            return count
    assert not one.cut
    return None


@pytest.mark.parametrize(
    ("text", "prompt", "expected"),
    [
        ("So four apples are", OPENED, 8),
        ("</think> four apples", OPENED, None),  # it ended by itself
        ("<think>So four apples are there", "How many?", 15),  # counted behind the tag
        ("Four apples, all in all: <think>So four", "How many?", None),  # begins too late
        ("Four.", "How many?", None),
    ],
)
def test_where_a_thinking_is_ended(text: str, prompt: str, expected: int | None) -> None:
    assert cut_at(text, 8, prompt) == expected


def test_a_tag_that_the_model_began_is_finished() -> None:
    found = watch(8).after([*map(ord, "So</thin")])
    assert "".join(map(chr, found)) == "k>\n\n"


def test_tags_of_the_user_and_such_that_nobody_can_write() -> None:
    tags = ProtocolSpec(think_tags=("<plan>,</plan>",), thinking_budget=3).budget
    assert tags is not None
    own = Watch(tags, "<plan>", lambda ids: "x" * len(ids), lambda text: [len(text)], "q")
    assert own.after([1, 1, 1]) == [len("\n</plan>\n\n")]
    with pytest.raises(UserError, match=r"'q': thinking_budget: what ends a thinking in <\|channel\|>analysis"):
        cut_at("so it is said", 3, "<|channel|>analysis<|message|>")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    model = tiny.build()
    tiny.learn(model, 120)
    return model


def generate(loaded: LoadedModel, batch: int, *requests: Request) -> dict[str, Generation]:
    made = TransformersEngine(loaded, batch).generate(requests, Sampling(40, 0))
    return {each.key: each for each in made}


def test_transformers_write_the_end_and_go_on(loaded: LoadedModel) -> None:
    free = generate(loaded, 1, Request("q", OPENED, 0))["q"]
    request = Request("q", OPENED, 0, budget=Budget(6))
    found = generate(loaded, 1, request)["q"]
    ids = loaded.encoder.piece(free.output).ids
    begun = loaded.encoder.decode([*ids[:6], *loaded.encoder.piece(FORCED).ids])
    assert found.thinking_cut and found.output.startswith(begun) and len(found.output) > len(begun)
    assert found.tokens is not None and found.tokens <= 40
    other = Request("other", "I am not sure", 1)
    assert generate(loaded, 3, other, request, other._replace(key="third"))["q"] == found
    long = generate(loaded, 1, request._replace(budget=Budget(1000)))["q"]
    assert long == free and not long.thinking_cut


class Scripted:
    """vLLM's interface; every output is ``says`` behind the prompt, up to as many tokens as are asked for."""

    says = " so four apples are there</think> 4"

    def __init__(self, **_: Any) -> None:
        self.words = tiny.tokenizer()
        self.asked: list[SimpleNamespace] = []
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: len(self.words)))

    def get_tokenizer(self) -> Any:
        return self.words

    def generate(self, given: Sequence[dict[str, list[int]]], parameters: Sequence[SimpleNamespace]) -> list[Any]:
        self.asked += parameters
        ids = self.words(self.says, add_special_tokens=False)["input_ids"]
        made = []
        for one, wanted in zip(given, parameters, strict=True):
            cut = ids[: wanted.max_tokens]
            reason = "length" if len(cut) < len(ids) else "stop"
            output = SimpleNamespace(text=self.words.decode(cut), token_ids=cut, finish_reason=reason)
            made.append(SimpleNamespace(prompt_token_ids=one["prompt_token_ids"], outputs=[output]))
        return made


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> vllm.VllmEngine:
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams, module.__version__ = Scripted, SimpleNamespace, "0.32"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    return vllm.VllmEngine(str(tiny_checkpoint))


def test_vllm_stops_at_the_budget_and_goes_on_with_another_seed(engine: vllm.VllmEngine) -> None:
    requests = [Request("cut", OPENED, 5, budget=Budget(3)), Request("free", OPENED, 6)]
    made = {each.key: each for each in engine.generate(requests, Sampling(60))}
    words = engine.encoder
    ids = words.piece(Scripted.says).ids
    begun = [*ids[:3], *words.piece(FORCED).ids]
    assert made["cut"].output == words.decode(begun) + words.decode(ids) and made["cut"].thinking_cut
    assert made["cut"].tokens == len(begun) + len(ids)
    assert made["free"].output == words.decode(ids) and not made["free"].thinking_cut
    limits = [each.max_tokens for each in engine.model.asked]
    assert limits == [3, 60, 60 - len(begun)]
    assert engine.model.asked[0].seed == 5 != engine.model.asked[2].seed


def test_vllm_looks_for_the_opening_tag_too(engine: vllm.VllmEngine) -> None:
    (made,) = engine.generate([Request("q", "How many?", 0, budget=Budget(3))], Sampling(60))
    assert engine.model.asked[0].max_tokens == 3 + OPENING
    assert not made.thinking_cut  # the output begins with no thinking
    (short,) = engine.generate([Request("q", OPENED, 0, budget=Budget(3))], Sampling(4))
    assert short.finish == "length" and short.thinking_cut


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"protocol": "likelihood", "thinking_budget": 5}, "thinking_budget belongs to protocol: generate"),
        ({"template": {"enable_thinking": False}}, "template: enable_thinking: it is the chat template's"),
        ({"thinking_budget": 0}, "greater than or equal to 1"),
    ],
)
def test_what_does_not_fit_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ProtocolSpec(**keys)


def test_a_server_is_refused_by_name(tmp_path: Path) -> None:
    server = Server("http://localhost:9/v1", "r1")
    with pytest.raises(UserError, match="thinking_budget: a server doesn't stop a thinking"):
        mp.bench(server, tmp_path, benchmarks=["folio"], thinking_budget=100)


def test_generations_of_another_budget_or_template_are_refused(tmp_path: Path) -> None:
    origin = Origin("folio", "rows", "model", "chat", Sampling())
    plain, path = GenerationFile(tmp_path / "a.jsonl", origin), tmp_path / "a.jsonl"
    plain.add(Key("1", 0), Generation("k", "out", "stop", 3, 4, "p"), {})
    assert "thinking" not in path.read_text() and "template" not in path.read_text()  # as it always was
    for more in ({"thinking_budget": 9}, {"template": {"enable_thinking": False}}):
        with pytest.raises(UserError, match=f"{next(iter(more))} is None"):
            GenerationFile(path, origin._replace(**more))
    other = tmp_path / "b.jsonl"
    cut = GenerationFile(other, origin._replace(thinking_budget=9))
    cut.add(Key("1", 0), Generation("k", "out", "stop", 3, 4, "p", True), {})
    assert GenerationFile(other, origin._replace(thinking_budget=9)).done[Key("1", 0)].thinking_cut
    with pytest.raises(UserError, match="thinking_budget is 9, this run has None"):
        GenerationFile(other, origin)


def test_requests_have_the_template_and_the_budget() -> None:
    asked: list[Request] = []

    class Engine:
        described: dict[str, Any] = {}  # noqa: RUF012

        def generate(self, requests: Sequence[Request], *_: Any) -> list[Generation]:
            asked.extend(requests)
            return []

    question = SimpleNamespace(benchmark="folio", id="1", message="m", prompt="p")
    spec = ProtocolSpec(prompts="chat", template={"enable_thinking": True}, thinking_budget=7)
    bench._generate(Engine(), [question], [Key("1", 0)], spec, None, SimpleNamespace(tokens=None))  # type: ignore[arg-type,list-item]
    (request,) = asked
    assert request.template == {"enable_thinking": True} and request.budget is not None and request.budget.tokens == 7
