"""Generation with the embedded model."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from mixprec.core.errors import UserError
from mixprec.evaluate.engines.base import Sampling
from mixprec.evaluate.engines.transformers import TransformersEngine
from mixprec.models.load import LoadedModel
from mixprec.traces.generate import Prompt, generate
from mixprec.traces.store import Trace

PROMPTS = [
    Prompt(id="sum", dataset="toy", prompt="What is 2 + 2?\n<think>\n"),
    Prompt(id="capital", dataset="", prompt="The capital of France is"),
]


def generated(loaded: LoadedModel, prompts: list[Prompt], tokens: int = 16, **options: Any) -> list[Trace]:
    sampling = Sampling(tokens, options.pop("temperature", 0.6), options.pop("top_p", 0.95))
    return list(generate(TransformersEngine(loaded, batch=1), prompts, sampling=sampling, **options))


def test_sampling_depends_on_seed_and_id_alone(smollm2: LoadedModel) -> None:
    there = generated(smollm2, PROMPTS, seed=1)
    torch.rand(3)
    state = torch.random.get_rng_state()
    back = generated(smollm2, PROMPTS[::-1], seed=1)
    assert torch.equal(state, torch.random.get_rng_state())  # the caller's random numbers stay its own
    assert there == back[::-1]
    assert [(trace.id, trace.dataset, trace.prompt) for trace in there] == [
        ("toy/sum", "toy", PROMPTS[0]["prompt"]),
        ("capital", "", PROMPTS[1]["prompt"]),
    ]
    other = generated(smollm2, PROMPTS, seed=2, temperature=1.5, top_p=1.0)
    assert [trace.output for trace in other] != [trace.output for trace in there]
    for trace in there:
        assert 0 < len(smollm2.tokenizer(trace.output)["input_ids"]) <= 17


def test_greedy_is_the_argmax_and_ignores_the_seed(smollm2: LoadedModel) -> None:
    one, two = (generated(smollm2, PROMPTS[1:], 3, temperature=0, seed=seed)[0] for seed in (0, 1))
    assert one == two
    ids = smollm2.tokenizer(PROMPTS[1]["prompt"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = smollm2.model(ids).logits[0, -1].argmax()
    assert one.output.startswith(smollm2.tokenizer.decode(best))


def test_chat_template_wraps_the_prompt(smollm2: LoadedModel) -> None:
    question = Prompt(id="capital", dataset="", prompt="What is the capital of France?")
    trace = generated(smollm2, [question], temperature=0, chat_template=True)[0]
    assert f"user\n{question['prompt']}" in trace.prompt
    assert trace.prompt.rstrip().endswith("assistant")
    assert "Paris" in trace.output
    assert "<|im_end|>" not in trace.output


def test_tokenizer_without_chat_template(smollm2: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2.tokenizer, "chat_template", None)
    with pytest.raises(UserError, match="no chat template"):
        generated(smollm2, PROMPTS, chat_template=True)


def test_prompt_that_fills_the_context(smollm2: LoadedModel) -> None:
    words = " the" * smollm2.context
    with pytest.raises(UserError, match=r"'long'.*8192 tokens fill the model's context of 8192"):
        generated(smollm2, [Prompt(id="long", dataset="", prompt=words)])


@pytest.fixture
def silent(smollm2: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """The model with every token as an end token: it stops before it wrote anything."""
    every = list(range(smollm2.model.config.vocab_size))
    monkeypatch.setattr(smollm2.model.generation_config, "eos_token_id", every)
    return smollm2


def test_empty_output_raises_or_is_counted(silent: LoadedModel) -> None:
    with pytest.raises(UserError, match="'toy/sum': the model wrote nothing"):
        generated(silent, PROMPTS, 4)
    skipped: Counter[str] = Counter()
    assert generated(silent, PROMPTS, 4, skipped=skipped) == []
    assert skipped == {"empty": 2}


def test_ids_that_repeat(smollm2: LoadedModel) -> None:
    with pytest.raises(UserError, match="'toy/sum' stands twice"):
        generated(smollm2, [*PROMPTS, PROMPTS[0]])
