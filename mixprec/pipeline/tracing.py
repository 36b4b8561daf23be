"""Before the first stage: a model's own traces."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mixprec.core import locks
from mixprec.core.progress import generating
from mixprec.evaluate.engines import templates
from mixprec.evaluate.engines.base import Sampling
from mixprec.evaluate.engines.transformers import TransformersEngine
from mixprec.models.model import Model
from mixprec.results.spans import Traces
from mixprec.traces.generate import by_id, generate, load_prompts
from mixprec.traces.recorder import Making, Recorder


def trace(
    model: Model, prompts: Path, to: Path, *, sampling: Sampling, seed: int, chat_template: bool, batch: int
) -> Traces:
    """Let ``model`` reason about prompts. Every trace is kept in ``to`` as soon as it is there.

    Raises UserError as load_prompts and Recorder do, and for a model without the chat template that is asked for.
    """
    rows = by_id(load_prompts(prompts))
    if chat_template:
        templates.require(model, "--chat-template", "leave the option out, and prompts go in as they are")
    making = Making(model.id, model.identity, model.dtype, chat_template, seed, *vars(sampling).values())
    skipped: Counter[str] = Counter()
    with locks.target(to):
        recorder = Recorder(to, making, {name: row["prompt"] for name, row in rows.items()})
        left = [row for name, row in rows.items() if name not in recorder.done]
        if left:
            engine = TransformersEngine(model.load(), batch)
            with generating("trace", len(rows), sampling.max_new_tokens, [None] * (len(rows) - len(left))) as seen:
                for made in generate(
                    engine,
                    left,
                    sampling=sampling,
                    seed=seed,
                    chat_template=chat_template,
                    skipped=skipped,
                    seen=seen,
                ):
                    recorder.write(made)
    return Traces(to, len(recorder.done), len(recorder.others), skipped["empty"])
