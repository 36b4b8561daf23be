"""Let a model reason: prompts in, traces out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.core.progress import Generating
from mixprec.evaluate.engines.base import Engine, Request, Sampling, derived_seed
from mixprec.traces.store import Trace, full_id


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


def by_id(prompts: Sequence[Prompt]) -> dict[str, Prompt]:
    """Id of its trace -> prompt. Raises UserError for two prompts with one id."""
    names = [full_id(row["id"], row["dataset"]) for row in prompts]
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise UserError(f"prompt {twice!r} stands twice; ids must be unique within their dataset")
    return dict(zip(names, prompts, strict=True))


def generate(
    engine: Engine,
    prompts: Sequence[Prompt],
    *,
    sampling: Sampling = Sampling(),
    seed: int = 0,
    chat_template: bool = False,
    skipped: Counter[str] | None = None,
    seen: Generating | None = None,
) -> Iterator[Trace]:
    """Yield one trace for each prompt as soon as it is done: in order where the engine does one at a time.

    Every prompt has a seed of its own, made of ``seed`` and its id, so that a trace depends neither on order nor on
    what was done before. At most ``sampling.max_new_tokens`` are generated, fewer where the model's context ends. The
    prompt goes in as it is, or with ``chat_template`` as the user's turn in the tokenizer's template; the trace's
    prompt is then the whole templated text. ``seen`` is told of tokens and outputs.

    A model that writes nothing is counted as ``empty`` in ``skipped``; without that counter it raises UserError. So
    do a prompt that fills the context, and ``chat_template`` where the tokenizer has none.
    """
    rows = by_id(prompts)
    requests = [Request(name, row["prompt"], derived_seed(seed, name), chat_template) for name, row in rows.items()]
    seen = seen or Generating(len(requests), sampling.max_new_tokens)
    for made in engine.generate(requests, sampling, seen.tokens):
        seen.output(made.tokens)
        if made.output.strip():
            yield Trace(made.key, rows[made.key]["dataset"], made.prompt, made.output)
        elif skipped is not None:
            skipped["empty"] += 1
        else:
            raise UserError(
                f"trace {made.key!r}: the model wrote nothing; try another seed, set chat_template, or leave the "
                "prompt out"
            )
