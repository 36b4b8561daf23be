"""Let a model reason: prompts in, traces out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import torch

from mixprec import artifacts
from mixprec.errors import UserError
from mixprec.models import LoadedModel
from mixprec.traces.store import Trace


class Prompt(TypedDict):
    """One instance: ``id`` is unique within its ``dataset`` (which may be empty)."""

    id: str
    dataset: str
    prompt: str


def load_prompts(path: Path) -> list[Prompt]:
    """Read prompts: JSON lines with ``id``, ``prompt`` and, if there are several, ``dataset``.

    Raises UserError naming file and row for missing keys.
    """
    prompts: list[Prompt] = []
    for number, row in enumerate(artifacts.read_jsonl(path), 1):
        missing = [key for key in ("id", "prompt") if not isinstance(row.get(key), str)]
        if missing:
            raise UserError(f"{path}: prompt {number}: key {missing[0]!r} is missing or no text")
        prompts.append(Prompt(id=row["id"], dataset=str(row.get("dataset", "")), prompt=row["prompt"]))
    if not prompts:
        raise UserError(f"{path}: no prompts in this file")
    return prompts


def full_id(prompt: Prompt) -> str:
    """The id that a prompt's trace has."""
    return f"{prompt['dataset']}/{prompt['id']}" if prompt["dataset"] else prompt["id"]


def generate(
    loaded: LoadedModel,
    prompts: Iterable[Prompt],
    *,
    max_new_tokens: int = 32_768,
    temperature: float = 0.6,
    top_p: float = 0.95,
    seed: int = 0,
    chat_template: bool = False,
    skipped: Counter[str] | None = None,
) -> Iterator[Trace]:
    """Yield one trace for each prompt, in order, as soon as it is done.

    Sampling as in the paper's protocol by default; greedy at ``temperature`` 0. Every prompt has a seed of
    its own, made of ``seed`` and its id, so that a trace depends neither on order nor on what was done
    before. At most ``max_new_tokens`` are generated, fewer where the model's context ends. The prompt goes in
    as it is, or with ``chat_template`` as the user's turn in the tokenizer's template; the trace's prompt is
    then the whole templated text.

    A model that writes nothing is counted as ``empty`` in ``skipped``; without that counter it raises
    UserError. So does a prompt that fills the context, and ``chat_template`` where the tokenizer has none.
    """
    for row in prompts:
        name = full_id(row)
        prompt = _templated(loaded.tokenizer, row["prompt"]) if chat_template else row["prompt"]
        output = _continue(loaded, prompt, name, max_new_tokens, temperature, top_p, _seed(seed, name))
        if output.strip():
            yield Trace(name, row["dataset"], prompt, output)
        elif skipped is not None:
            skipped["empty"] += 1
        else:
            raise UserError(
                f"trace {name!r}: the model wrote nothing; try another seed, set chat_template, or leave the prompt out"
            )


def _templated(tokenizer: Any, prompt: str) -> str:
    """The prompt as the user's turn, without the leading special token that the tokenizer adds by itself."""
    if not tokenizer.chat_template:
        raise UserError("chat_template: the tokenizer has no chat template; set chat_template to false")
    turn = [{"role": "user", "content": prompt}]
    text: str = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    begins_itself = tokenizer.bos_token and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(tokenizer.bos_token) if begins_itself else text


def _seed(seed: int, name: str) -> int:
    """63 bits that differ for every seed and trace; Python's own hash differs between processes."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 1


def _continue(
    loaded: LoadedModel,
    prompt: str,
    name: str,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> str:
    """What the model writes behind a prompt, without the token that ends it."""
    tokens = loaded.tokenizer(prompt, return_tensors="pt").to(loaded.model.device)
    length = tokens["input_ids"].shape[1]
    room = loaded.context - length
    if room < 1:
        raise UserError(
            f"trace {name!r}: the prompt's {length} tokens fill the model's context of {loaded.context}; "
            "shorten it or leave it out"
        )
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        # top_k 0: transformers would otherwise keep only the 50 likeliest tokens.
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    ends = _end_tokens(loaded)
    padding = loaded.tokenizer.pad_token_id
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        written = loaded.model.generate(
            **tokens,
            **sampling,
            max_new_tokens=min(max_new_tokens, room),
            eos_token_id=ends or None,
            pad_token_id=padding if padding is not None else next(iter(ends), 0),
        )
    new = written[0, length:].tolist()
    while new and new[-1] in ends:
        new.pop()
    # Special tokens stay: the trace is read again as text, and has to hold what the model saw.
    return str(loaded.tokenizer.decode(new, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _end_tokens(loaded: LoadedModel) -> list[int]:
    """The tokens that end a generation: the model's own, and the tokenizer's."""
    ends = loaded.model.generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return sorted({token for token in (*listed, loaded.tokenizer.eos_token_id) if token is not None})
