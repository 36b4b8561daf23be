"""What stages around a model take: a student that learns, what models write, a base to compare with, shifts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from mixprec.importance.cost import Shape
from mixprec.pipeline.rates import Rates
from mixprec.pipeline.stage import Stage, decoding
from mixprec.pipeline.traffic import Stored, Traffic
from mixprec.pipeline.usage import Used
from mixprec.plan.schema import Plan
from mixprec.recipe import BASE, Recipe

#: Of the rate of products in float32, so much is left in training, the optimizer's step included.
_TRAINING = 0.6
#: Bytes of a weight in training: itself, its gradient, AdamW's two moments; and of a state on the disk.
_TRAINED_BYTES, _STATE_BYTES = 16, 12
_PYTHON_BYTES = 900_000_000
#: Seconds for each weight that is compared with its base's.
_UPDATE_SECONDS = 2.0e-7


def learning(chosen: Recipe, used: Mapping[str, Used], shape: Shape, stored: Stored, rates: Rates) -> Iterator[Stage]:
    """The recipe's ``distill``; of how many traces are held out, only their number is known."""
    spec, traces = chosen.distill, used.get("distill")
    if spec is None or traces is None:
        return
    held = min(1.0, spec.validation / traces.items)
    each = shape.forward(traces.tokens, traces.squares) + shape.head * traces.tokens
    passes = (3 + spec.recompute) * spec.epochs * (1 - held) + held * (spec.checks * spec.epochs + 2)
    passes += spec.epochs * (1 - held) if spec.teacher else 0
    steps = spec.epochs * math.ceil(traces.items * (1 - held) / spec.batch)
    work = f"{traces.items:,} traces of {traces.tokens:,} tokens, {min(spec.validation, traces.items)} for validation"
    work += f", {steps} steps"
    logits = 3 * traces.longest * spec.at_once * shape.vocabulary * 4
    weights = shape.parameters * (4 if spec.lora else _TRAINED_BYTES)
    disk = 2 * shape.parameters
    states = 0 if spec.lora else _STATE_BYTES * shape.parameters
    files = stored.sweeps(written=disk) + Traffic(states, states * spec.epochs * spec.checks)
    yield Stage(
        "distill",
        work,
        passes * each / (_TRAINING * rates.products["float32"]),
        _PYTHON_BYTES + weights + logits,
        disk,
        files,
    )


def writing(
    chosen: Recipe, used: Mapping[str, Used], shape: Shape, stored: Stored, item: int, rates: Rates
) -> Stage | None:
    """The recipe's ``generate``; None where there is none, or its prompts are not known."""
    spec, traces = chosen.generate, used.get("generate")
    if spec is None or traces is None:
        return None
    tokens = traces.items * spec.max_new_tokens
    batch = min(spec.engine.batch, traces.items)
    here = spec.engine.kind == "transformers"
    seconds = decoding(tokens, shape.parameters, batch, rates) if here else None
    cache = shape.keys_values(batch * traces.longest, item) if here else 0
    memory = _PYTHON_BYTES + shape.parameters * item + cache
    work = f"{traces.items:,} prompts, at most {tokens:,} tokens"
    return Stage("generate", work, seconds, memory, tokens * 5, stored.sweeps(written=tokens * 5), most=True)


def updating(chosen: Recipe, shape: Shape, stored: Stored, rates: Rates) -> Iterator[Stage]:
    """The comparison with the model's base: both read three times, one module in memory at a time."""
    if chosen.compress.fine_tuned_from is not None:
        seconds, each = _UPDATE_SECONDS * shape.linear / rates.weight, Traffic(6 * stored.blocks)
        yield Stage("updates", "the model and its base", seconds, _PYTHON_BYTES, 0, each)


def compared(chosen: Recipe, plans: Mapping[str, Plan | None]) -> list[str]:
    """The models whose importance is compared with the original's."""
    made = [name for name, plan in plans.items() if plan is None or plan.changed]
    others = [] if chosen.shift is None else list(chosen.shift.models)
    return ([BASE] if chosen.distill is not None else []) + others + made


def joined(name: str, parts: Sequence[Stage]) -> Stage:
    """Several stages as one."""
    known = [each.seconds for each in parts if each.seconds is not None]
    return Stage(
        name,
        ", ".join(each.work for each in parts),
        sum(known) if len(known) == len(parts) else None,
        max(each.memory for each in parts),
        sum(each.disk for each in parts),
        sum((each.traffic for each in parts), Traffic()),
        any(each.most for each in parts),
    )
