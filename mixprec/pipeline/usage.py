"""What of its data a recipe uses: traces, passages and samples, their tokens, the spans in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from mixprec.models.sizes import context_of
from mixprec.pipeline.checks import Checked
from mixprec.recipe import OWN, GenerateSpec, Recipe, TracesSpec


class Used(NamedTuple):
    """``items``: traces, samples or passages; ``squares``: of their tokens, summed; ``longest`` of them. ``exact``:
    counted, not estimated. ``inside``: tokens in ``spans``, which are counted by behaviour. ``most``: what models
    write, at most."""

    key: str
    what: str
    items: int
    tokens: int
    squares: int
    longest: int
    exact: bool
    spans: Mapping[str, int] = MappingProxyType({})
    inside: float = 0.0
    most: bool = False


def used(chosen: Recipe, found: Checked) -> Iterator[Used]:
    """What each stage sees, in the stages' order; what could not be read is left out."""
    context = context_of(found.config) if found.config else 1 << 20
    spec = chosen.importance
    if chosen.distill is not None:
        yield from _traces("distill", "distill.traces", found, min(chosen.distill.tokens or context, context))
    if chosen.generate is not None:
        yield from _written(chosen.generate, "generate", found, context)
    limit = min((spec.max_tokens if spec else None) or context, context)
    second = chosen.agreement.of(chosen.traces) if chosen.agreement and chosen.traces else None
    for key, traces in (("traces", chosen.traces), ("agreement", second)):
        if traces is not None:
            yield from _either(chosen, traces, key, f"{key}.source", found, limit)
    calibration = chosen.compress.calibration
    if calibration is not None:
        yield _alike("compress.calibration", "samples", calibration.samples, calibration.tokens)
    yield from _scored(chosen, found, context)
    evaluate = chosen.evaluate
    if evaluate is None:
        return
    limit = min(evaluate.max_tokens or context, context)
    if evaluate.traces is not None:
        yield from _either(chosen, evaluate.traces, "evaluate.traces", "evaluate.traces.source", found, limit)
    if text := found.held.get("evaluate.text"):
        length = min(evaluate.text_tokens, limit)
        amount = found.counting.amount(text.texts)
        there = -(-amount.total // max(length - found.counting.head, 1))
        count = min(evaluate.text_passages or there, there)
        tokens = min(count * length, amount.total + count * found.counting.head)
        yield Used("evaluate.text", "passages", count, tokens, count * length**2, length, amount.exact)


def _either(
    chosen: Recipe, spec: TracesSpec, key: str, source: str, found: Checked, limit: int, first: int | None = None
) -> Iterator[Used]:
    """Traces that are there, or that the model will write; ``first`` of them."""
    if spec.source == OWN and chosen.generate is not None:
        yield from _written(chosen.generate, key, found, limit, first)
    else:
        yield from _traces(key, source, found, limit, first)


def _written(spec: GenerateSpec, key: str, found: Checked, limit: int, first: int | None = None) -> Iterator[Used]:
    """What the model will write, at most, behind prompts that are known; ``inside``: as if all of it lay in spans."""
    held = found.held.get("generate.prompts")
    if held is None:
        return
    prompts = found.counting.amount(held.texts).tokens[:first]
    lengths = [min(tokens + found.counting.head + spec.max_new_tokens, limit) for tokens in prompts]
    squares = sum(length**2 for length in lengths)
    inside = float(sum(min(spec.max_new_tokens, length) for length in lengths))
    yield Used(key, "traces", len(lengths), sum(lengths), squares, max(lengths), False, inside=inside, most=True)


def _alike(key: str, what: str, items: int, length: int) -> Used:
    return Used(key, what, items, items * length, items * length**2, length, True)


def _traces(key: str, source: str, found: Checked, limit: int, first: int | None = None) -> Iterator[Used]:
    held = found.held.get(source)
    if held is None:
        return
    amount = found.counting.amount(held.texts)
    lengths = [min(tokens + found.counting.head, limit) for tokens in amount.tokens[:first]]
    whole = sum(map(len, held.texts)) or 1
    inside = held.inside * amount.total / whole * min(1.0, sum(lengths) / max(amount.total, 1))
    squares = sum(length**2 for length in lengths)
    yield Used(key, "traces", len(lengths), sum(lengths), squares, max(lengths), amount.exact, held.spans, inside)


def _scored(chosen: Recipe, found: Checked, context: int) -> Iterator[Used]:
    """What damage is predicted on."""
    spec, calibration = chosen.sensitivity, chosen.compress.calibration
    if spec is None or calibration is None:
        return
    if spec.behaviours and chosen.traces is not None:
        limit, most = min(spec.max_tokens, context), spec.samples
        for each in _either(chosen, chosen.traces, "sensitivity", "traces.source", found, limit, most):
            yield each._replace(spans={})
    else:
        yield _alike("sensitivity", "samples", min(spec.samples, calibration.samples), calibration.tokens)
