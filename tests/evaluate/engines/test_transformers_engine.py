"""The transformers engine on tiny models: rows don't depend on their batch, and greedy is transformers' own greedy."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from mixprec.core.errors import UserError
from mixprec.evaluate.engines import transformers as engine_module
from mixprec.evaluate.engines.base import Generation, Request, Sampling, derived_seed
from mixprec.evaluate.engines.transformers import TransformersEngine
from mixprec.models.load import LoadedModel

TEXTS = [
    "There were 4 apples.\n<think>\n",
    "Okay",
    "Wait, that is not right, let me go back. For example, take two apples and one pear. I recall",
    "I am not sure",
    "Two",
]
REQUESTS = [Request(f"q{index}", text, derived_seed(0, str(index))) for index, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """A tiny Llama that knows its texts by heart, so that some generations end by themselves."""
    model = tiny.build()
    tiny.learn(model, 120)
    return model


def run(loaded: LoadedModel, batch: int, requests: list[Request] = REQUESTS, **sampling: Any) -> list[Generation]:
    return list(TransformersEngine(loaded, batch).generate(requests, Sampling(**{"max_new_tokens": 40} | sampling)))


def by_key(made: list[Generation]) -> dict[str, Generation]:
    assert len({each.key for each in made}) == len(made)
    return {each.key: each for each in made}


@pytest.mark.parametrize("temperature", [0, 0.6, 1.5])
def test_a_row_depends_on_its_seed_alone(loaded: LoadedModel, temperature: float) -> None:
    alone = by_key(run(loaded, 1, temperature=temperature))
    assert list(alone) == [request.key for request in REQUESTS]  # one at a time: in order
    for batch, order in ((2, REQUESTS), (3, REQUESTS[::-1]), (16, REQUESTS)):
        assert by_key(run(loaded, batch, order, temperature=temperature)) == alone
    some = by_key(run(loaded, 2, REQUESTS[2:4], temperature=temperature))
    assert some == {key: alone[key] for key in some}
    if temperature:
        other = [request._replace(seed=request.seed + 1) for request in REQUESTS]
        assert by_key(run(loaded, 4, other, temperature=temperature)) != alone


def test_long_rows_let_new_ones_in(loaded: LoadedModel) -> None:
    """Row by row the batch is refilled: no row waits for the longest."""
    made = run(loaded, 2, REQUESTS, max_new_tokens=60, temperature=0)
    assert {each.finish for each in made} == {"stop", "length"}
    for each in made:
        assert each.tokens == 60 if each.finish == "length" else each.tokens < 60
        assert "</s>" not in each.output


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text"])
def test_greedy_is_that_of_transformers(architecture: str) -> None:
    options = {"sliding_window": 8} if architecture in ("mistral", "gemma2", "gemma3_text") else {}
    model = tiny.build(architecture, seed=3, **options)
    made = by_key(run(model, 3, max_new_tokens=12, temperature=0))
    ends = sorted(TransformersEngine(model).ends)
    for request in REQUESTS:
        ids = model.tokenizer(request.prompt, return_tensors="pt")["input_ids"]
        written = model.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=ends,
            pad_token_id=0,
        )
        new = written[0, ids.shape[1] :].tolist()
        text = model.tokenizer.decode([token for token in new if token not in ends])
        assert made[request.key].output == text
        assert (made[request.key].tokens, made[request.key].prompt_tokens) == (len(new), ids.shape[1])


def test_the_context_ends_a_row(loaded: LoadedModel) -> None:
    words = loaded.tokenizer.decode(loaded.tokenizer("apples " * 300)["input_ids"][1:251])
    room = loaded.context - len(loaded.tokenizer(words)["input_ids"])
    (made,) = run(loaded, 4, [Request("near", words, 0)], max_new_tokens=1000)
    assert made.finish == "stop" or made.tokens == room
    with pytest.raises(UserError, match=r"'long': the prompt's \d+ tokens fill the model's context of 256"):
        run(loaded, 4, [*REQUESTS, Request("long", "apples " * 300, 0)])


def test_prompts_are_taken_in_as_memory_allows(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(loaded, 5)
    monkeypatch.setattr(engine_module, "_PREFILL", 1)  # one at a time all the same
    assert by_key(run(loaded, 5)) == by_key(whole)


def test_broken_weights_are_told(loaded: LoadedModel) -> None:
    broken = tiny.build()
    broken.model.lm_head.weight.data[5] = float("nan")
    with pytest.raises(UserError, match="logits are NaN"):
        run(broken, 2)


def test_full_memory_is_told(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loaded.model, "forward", full)
    with pytest.raises(UserError, match=r"no memory for 4 rows; set engine.batch lower"):
        run(loaded, 4)


@pytest.mark.gpu
def test_a_gpu_writes_what_the_cpu_writes(loaded: LoadedModel) -> None:
    there = LoadedModel(tiny.build().model.cuda(), loaded.encoder)
    there.model.load_state_dict(loaded.model.state_dict())
    assert by_key(run(there, 3, temperature=0)) == by_key(run(loaded, 3, temperature=0))
