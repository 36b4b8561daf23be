"""Test-time compute: how the shortest outputs score against the longest (arXiv 2504.02010, Appendix O)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixprec.evaluate import metrics

SHARES = (0.3, 0.2)


def short_and_long(lengths: Sequence[Sequence[int]], scores: Sequence[Sequence[float]], share: float) -> dict[str, Any]:
    """Scores of the shortest and longest ``share`` of outputs, and the ratio of their mean lengths.

    Both (questions, seeds); ``lengths`` in tokens. Each pass (seed) is cut by itself and the passes are averaged: for
    203 questions and 30%, the 60 shortest and the 60 longest. Outputs of equal length keep the questions' order.
    Intervals: 95% bootstrap over questions. n: outputs on each side of a pass; everything is None where it is 0.
    """
    long, score = np.array(lengths, dtype=np.float64), np.array(scores, dtype=np.float64)
    count = int(share * len(long) + 1e-9)
    if count == 0:
        return dict.fromkeys(("short", "long", "ratio", "short_ci", "long_ci", "ratio_ci")) | {"n": 0}
    found = _cut(long, score, count, np.arange(len(long))[None])
    draws = np.random.default_rng(metrics.SEED).integers(len(long), size=(metrics.RESAMPLES, len(long)))
    resampled = _cut(long, score, count, draws)
    result: dict[str, Any] = {name: float(values[0]) for name, values in found.items()}
    return result | {f"{name}_ci": metrics.percentiles(values) for name, values in resampled.items()} | {"n": count}


def _cut(
    lengths: NDArray[np.float64], scores: NDArray[np.float64], count: int, draws: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """short, long and ratio for each of the D rows of ``draws`` (D, questions)."""
    passes = []
    for seed in range(lengths.shape[1]):
        length, score = lengths[:, seed][draws], scores[:, seed][draws]
        order = length.argsort(axis=1, kind="stable")
        ends = {"short": order[:, :count], "long": order[:, -count:]}
        means = {name: np.take_along_axis(score, ids, 1).mean(1) for name, ids in ends.items()}
        sizes = {name: np.take_along_axis(length, ids, 1).mean(1) for name, ids in ends.items()}
        passes.append(means | {"ratio": sizes["long"] / np.maximum(sizes["short"], 1)})
    return {name: np.mean([each[name] for each in passes], axis=0) for name in passes[0]}
