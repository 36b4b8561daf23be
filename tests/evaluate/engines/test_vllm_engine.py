"""The vLLM engine against a stand-in for the package; benchmarks/evaluation.py runs the real one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tiny

from mixprec.core.errors import UserError
from mixprec.evaluate.engines import vllm
from mixprec.evaluate.engines.base import Generation, Request, Sampling
from mixprec.evaluate.engines.make import make
from mixprec.evaluate.spec import EngineSpec
from mixprec.models.model import Model


class FakeLLM:
    made: list[dict[str, Any]] = []  # noqa: RUF012

    def __init__(self, **options: Any) -> None:
        if options["model"] == "broken":
            raise RuntimeError("no such scheme\nmore")
        FakeLLM.made.append(options)
        self.groups: list[int] = []
        self.seen: list[list[int]] = []
        self.words = tiny.tokenizer()
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(get_vocab_size=lambda: len(self.words)))

    def get_tokenizer(self) -> Any:
        return self.words

    def generate(self, given: list[dict[str, list[int]]], parameters: list[SimpleNamespace]) -> list[Any]:
        self.groups.append(len(given))
        self.seen += [each["prompt_token_ids"] for each in given]
        prompts = [self.words.decode(each["prompt_token_ids"][1:]) for each in given]
        if any("long" in prompt for prompt in prompts):
            raise ValueError("The prompt is longer than max_model_len")
        return [
            SimpleNamespace(
                prompt_token_ids=[1, 2, 3],
                outputs=[
                    SimpleNamespace(
                        text=f"{prompt} {given.seed} {given.max_tokens} {given.top_p}",
                        token_ids=[4, 5],
                        finish_reason="length" if "cut" in prompt else "stop",
                    )
                ],
            )
            for prompt, given in zip(prompts, parameters, strict=True)
        ]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams, module.__version__ = FakeLLM, SimpleNamespace, "0.32"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)


def test_requests_become_generations(fake: None, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "_AT_ONCE", 2)
    engine = vllm.VllmEngine(str(tiny_checkpoint), "bfloat16", max_model_len=64)
    requests = [Request("a", "one", 7), Request("b", "cut", 8), Request("c", "three", 9)]
    made = list(engine.generate(requests, Sampling(16, 0.6, 0.9)))
    assert made[0] == Generation("a", "one 7 16 0.9", "stop", 2, 3, "one")
    assert [each.finish for each in made] == ["stop", "length", "stop"]
    assert engine.model.groups == [2, 1]
    assert engine.model.seen[0] == tiny.tokenizer()("one")["input_ids"]
    assert FakeLLM.made[-1] == {"model": str(tiny_checkpoint), "dtype": "bfloat16", "max_model_len": 64}
    assert engine.described == {"kind": "vllm", "version": "0.32", "dtype": "bfloat16"}


def test_vllm_gets_one_bos_wherever_the_prompt_has_it(fake: None, tiny_checkpoint: Path) -> None:
    engine = vllm.VllmEngine(str(tiny_checkpoint))
    engine.encoder.tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
    requests = [Request("a", "one", 0), Request("b", "<s>one", 0), Request("c", "one", 0, chat=True)]
    made = list(engine.generate(requests, Sampling(16)))
    assert engine.model.seen == [tiny.tokenizer()("one")["input_ids"]] * 3
    assert [each.prompt for each in made] == ["one", "<s>one", "<s>one"]


def test_what_vllm_refuses_is_told(fake: None, tiny_checkpoint: Path) -> None:
    model = str(tiny_checkpoint)
    with pytest.raises(UserError, match=r"engine vllm: broken can't be loaded \(no such scheme\)"):
        vllm.VllmEngine("broken")
    with pytest.raises(UserError, match="longer than max_model_len"):
        list(vllm.VllmEngine(model).generate([Request("a", "long", 0)], Sampling()))
    with pytest.raises(UserError, match="no chat template"):
        list(vllm.VllmEngine(model).generate([Request("a", "q", 0, chat=True)], Sampling()))


def test_a_recipe_makes_it(fake: None, tiny_checkpoint: Any) -> None:
    spec = EngineSpec(kind="vllm", gpus=2, memory=0.5, max_context=128)
    make(spec, Model(tiny_checkpoint, dtype="float16", device="cuda"))
    assert FakeLLM.made[-1] == {
        "model": str(tiny_checkpoint),
        "dtype": "float16",
        "tensor_parallel_size": 2,
        "gpu_memory_utilization": 0.5,
        "max_model_len": 128,
    }


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"engine vllm: not installed .* pip install 'mixprec\[vllm\]'"):
        vllm.VllmEngine("model")
