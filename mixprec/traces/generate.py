"""Let a model reason: prompts in, traces out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mixprec.core.errors import UserError
from mixprec.core.progress import Generating
from mixprec.evaluate.engines.base import Engine, Request, Sampling, derived_seed
from mixprec.traces.prompts import Prompt, by_id
from mixprec.traces.store import Trace


def generate(
    engine: Engine,
    prompts: Sequence[Prompt],
    *,
    sampling: Sampling = Sampling(),
    seed: int = 0,
    chat_template: bool = False,
    template: Mapping[str, Any] = {},
    skipped: Counter[str] | None = None,
    seen: Generating | None = None,
) -> Iterator[Trace]:
    """Yield one trace for each prompt as soon as it is done: in order where the engine does one at a time.

    Every prompt has a seed of its own, made of ``seed`` and its id, so that a trace depends neither on order nor on
    what was done before. At most ``sampling.max_new_tokens`` are generated, fewer where the model's context ends. The
    prompt goes in as it is, or with ``chat_template`` as the user's turn, or a conversation, in the tokenizer's
    template with the arguments ``template``; the trace's prompt is then the whole templated text. ``seen`` is told of
    tokens and outputs.

    A model that writes nothing is counted as ``empty`` in ``skipped``; without that counter it raises UserError. So
    do a prompt that fills the context, and ``chat_template`` where the tokenizer has none.
    """
    rows = by_id(prompts)
    requests = [
        Request(name, row["prompt"], derived_seed(seed, name), chat_template, tuple(row.get("messages", ())), template)
        for name, row in rows.items()
    ]
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
