"""How far two annotations of the same traces agree, by characters and by spans (arXiv 2504.02010, Appendix G).

Neither side is the truth: ``first`` and ``second`` are the shares of each side's characters (or spans) that the other
has too, and F1 is their harmonic mean (for characters: Dice's coefficient). A character may lie in spans of several
behaviours. Cohen's kappa takes off what chance would give, of all characters of prompts and outputs.

Intervals are of resamples of the traces, drawn with replacement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mixprec.core.errors import UserError
from mixprec.traces.spans import ALL_BEHAVIOURS, AnnotatedTrace, CharSpan

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0
#: Two spans are the same one where they share at least this part of what they cover together.
OVERLAP = 0.5
#: What stands for no label among the rows and columns of a confusion table.
NONE = "none"


class Pairs(NamedTuple):
    """Traces that two annotations have in common, in the first one's order; and how many only one of them has."""

    first: list[AnnotatedTrace]
    second: list[AnnotatedTrace]
    only_first: int
    only_second: int


class _Counts(NamedTuple):
    """Numbers per trace and behaviour (N, C); ``length`` (N,) characters of each trace."""

    chars_first: np.ndarray
    chars_second: np.ndarray
    chars_both: np.ndarray
    spans_first: np.ndarray
    spans_second: np.ndarray
    spans_both: np.ndarray
    length: np.ndarray

    def summed(self, weights: np.ndarray) -> _Counts:
        """All traces together, trace n ``weights[b, n]`` times: (B, C), and (B, 1)."""
        return _Counts(*(weights @ (each if each.ndim > 1 else each[:, None]) for each in self))


def pair(first: Sequence[AnnotatedTrace], second: Sequence[AnnotatedTrace]) -> Pairs:
    """Put the traces of two annotations together by their ids.

    Raises UserError where they have none in common, or a trace's text is another one in the second.
    """
    others = {each.trace.id: each for each in second}
    common = [each for each in first if each.trace.id in others]
    if not common:
        raise UserError("the two annotations have no trace in common; annotate the same traces twice")
    for each in common:
        if each.trace.text != others[each.trace.id].trace.text:
            raise UserError(
                f"trace {each.trace.id!r} has another text in the second annotation; annotate the same traces twice"
            )
    matched = [others[each.trace.id] for each in common]
    return Pairs(common, matched, len(first) - len(common), len(second) - len(common))


def compare(pairs: Pairs, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Agreement of two annotations, JSON.

    behaviours: per behaviour ``characters`` and ``spans``, each with how many the ``first`` and the ``second`` has and
    both have, ``share_first``, ``share_second``, ``f1`` and, of characters, ``kappa``; with intervals ``*_ci`` where
    there are at least two traces and ``resamples``. None where a share is of nothing. ``confusion``: label of the
    first -> label of the second -> characters, of the last span where several cover one.
    """
    traces = len(pairs.first)
    counts = _count(pairs)
    weights = np.ones((1, traces))
    if resamples and traces > 1:
        drawn = np.random.default_rng(SEED).multinomial(traces, np.full(traces, 1 / traces), size=resamples)
        weights = np.vstack([weights, drawn])
    total = counts.summed(weights)
    figures = {
        "characters": _figures(total.chars_first, total.chars_second, total.chars_both, total.length),
        "spans": _figures(total.spans_first, total.spans_second, total.spans_both, None),
    }
    whole = {
        "characters": (total.chars_first, total.chars_second, total.chars_both),
        "spans": (total.spans_first, total.spans_second, total.spans_both),
    }
    behaviours = {
        behaviour: {
            unit: {
                **dict(zip(("first", "second", "both"), (int(each[0, at]) for each in whole[unit]), strict=True)),
                **_described(figures[unit], at),
            }
            for unit in figures
        }
        for at, behaviour in enumerate(ALL_BEHAVIOURS)
    }
    return {
        "traces": traces,
        "only_first": pairs.only_first,
        "only_second": pairs.only_second,
        "resamples": len(weights) - 1,
        "behaviours": behaviours,
        "confusion": _confusion(pairs),
    }


def _described(figures: dict[str, np.ndarray], at: int) -> dict[str, Any]:
    """Of one behaviour each figure, and its interval."""
    found: dict[str, Any] = {}
    for name, values in figures.items():
        found[name] = rounded(values[0, at])
        if len(values) > 1:
            found[f"{name}_ci"] = interval(values[1:, at])
    return found


def rounded(value: float) -> float | None:
    """Six digits; None for what is no number."""
    return None if np.isnan(value) else round(float(value), 6)


def interval(values: np.ndarray) -> list[float] | None:
    """The middle 95% of the resamples that say something, None where none does."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    return [round(float(bound), 6) for bound in np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])]


def _figures(first: np.ndarray, second: np.ndarray, both: np.ndarray, length: np.ndarray | None) -> dict[str, Any]:
    """Shares, F1 and kappa (B, C); NaN where they are of nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {"share_first": both / first, "share_second": both / second, "f1": 2 * both / (first + second)}
        if length is not None:
            agreed = (length - first - second + 2 * both) / length
            chance = (first * second + (length - first) * (length - second)) / length**2
            found["kappa"] = (agreed - chance) / (1 - chance)
    return found


def _count(pairs: Pairs) -> _Counts:
    rows = []
    for one, other in zip(pairs.first, pairs.second, strict=True):
        length = len(one.trace.text)
        mine, theirs = ([_of(each, behaviour) for behaviour in ALL_BEHAVIOURS] for each in (one, other))
        masks = [([_mask(spans, length) for spans in side]) for side in (mine, theirs)]
        rows.append(
            (
                [int(mask.sum()) for mask in masks[0]],
                [int(mask.sum()) for mask in masks[1]],
                [int((a & b).sum()) for a, b in zip(*masks, strict=True)],
                [len(spans) for spans in mine],
                [len(spans) for spans in theirs],
                [matches(a, b) for a, b in zip(mine, theirs, strict=True)],
                length,
            )
        )
    return _Counts(*(np.array(column, dtype=float) for column in zip(*rows, strict=True)))


def _of(each: AnnotatedTrace, behaviour: str) -> list[CharSpan]:
    return [span for span in each.spans if span.behaviour == behaviour]


def _mask(spans: Sequence[CharSpan], length: int) -> np.ndarray:
    mask = np.zeros(length, dtype=bool)
    for span in spans:
        mask[span.start : span.end] = True
    return mask


def matches(first: Sequence[CharSpan], second: Sequence[CharSpan]) -> int:
    """How many spans of one behaviour are the same in both, each used once, the most alike first."""
    candidates = []
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            shared = min(one.end, other.end) - max(one.start, other.start)
            union = max(one.end, other.end) - min(one.start, other.start)
            if shared >= OVERLAP * union:
                candidates.append((-shared / union, i, j))
    used_first: set[int] = set()
    used_second: set[int] = set()
    for _, i, j in sorted(candidates):
        if i not in used_first and j not in used_second:
            used_first.add(i)
            used_second.add(j)
    return len(used_first)


def _confusion(pairs: Pairs) -> dict[str, dict[str, int]]:
    names = (*ALL_BEHAVIOURS, NONE)
    table = np.zeros((len(names), len(names)), dtype=np.int64)
    for one, other in zip(pairs.first, pairs.second, strict=True):
        np.add.at(table, (_labels(one), _labels(other)), 1)
    return {name: dict(zip(names, map(int, row), strict=True)) for name, row in zip(names, table, strict=True)}


def _labels(each: AnnotatedTrace) -> np.ndarray:
    """Number of every character's behaviour, the last span's where several cover it; behind them all: none."""
    found = np.full(len(each.trace.text), len(ALL_BEHAVIOURS))
    for span in each.spans:
        found[span.start : span.end] = ALL_BEHAVIOURS.index(span.behaviour)
    return found
