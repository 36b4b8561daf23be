"""From verdicts to numbers: means over seeds with errors and intervals, paired differences, pass@k and maj@k.

Everything is computed from a table of questions by seeds. Questions are resampled with all their seeds, since
outputs to one question depend on it: seeds are no new questions.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mixprec.evaluate import metrics

#: Sets of k samples that a vote is averaged over; more sets than these are drawn at random.
_VOTES = 2000


class Sample(NamedTuple):
    """One output's verdict: its ``score`` (0 to 1), whether it is ``correct``, and the ``answer`` it gave, if any."""

    score: float
    correct: bool
    answer: str | None


def mean_of(questions: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Mean over questions (Q) and seeds (S) of ``questions`` (Q, S), what it is uncertain by, and on how many.

    se: standard error of the mean with each question as one observation. se_seeds: of the S means of single passes,
    None for one seed. ci: 95% bootstrap over questions (``interval``). passes: the mean of each seed.
    """
    table = np.array(questions, dtype=np.float64)
    count, seeds = table.shape
    each, passes = table.mean(1), table.mean(0)
    return {
        "mean": float(table.mean()),
        "se": float(each.std(ddof=1) / math.sqrt(count)) if count > 1 else None,
        "se_seeds": float(passes.std(ddof=1) / math.sqrt(seeds)) if seeds > 1 else None,
        "ci": interval([float(value) for value in each]),
        "passes": [float(value) for value in passes],
        "n": count,
        "seeds": seeds,
    }


def interval(questions: Sequence[float]) -> list[float] | None:
    """95% interval of the mean of ``questions``, each the mean of its seeds; None for one question.

    Where all are 0 or all are 1, resampling can't vary, which is not certainty: the exact (Clopper–Pearson) interval
    of a proportion is given there, 0 to 0.116 for none of 30.
    """
    count = len(questions)
    if count < 2:
        return None
    bound = ((1 - metrics.LEVEL) / 2) ** (1 / count)
    if all(value == 0 for value in questions):
        return [0.0, 1 - bound]
    if all(value == 1 for value in questions):
        return [bound, 1.0]
    return metrics.bootstrap_mean(questions, [1] * count)


def difference(first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Mean of ``first`` minus that of ``second`` over the questions that both have, with its paired 95% interval.

    Both: question -> scores of its seeds. The two may have other numbers of seeds. n is 0, the rest None, where no
    question is in both. No interval where every question moved by the same: resampling can't vary.
    """
    shared = [name for name in first if name in second]
    if not shared:
        return {"difference": None, "ci": None, "n": 0}
    pairs = [_mean(first[name]) - _mean(second[name]) for name in shared]
    bounds = metrics.bootstrap_mean(pairs, [1] * len(pairs)) if len(set(pairs)) > 1 else None
    return {"difference": _mean(pairs), "ci": bounds, "n": len(pairs)}


def average(parts: Sequence[Sequence[Sequence[float]]]) -> dict[str, Any]:
    """Mean of the means of several benchmarks, each (questions, seeds), as the paper's Avg; questions are resampled
    within their benchmark.
    """
    rng = np.random.default_rng(metrics.SEED)
    each = [np.array(part, dtype=np.float64).mean(1) for part in parts]
    draws = [values[rng.integers(len(values), size=(metrics.RESAMPLES, len(values)))].mean(1) for values in each]
    bounds = metrics.percentiles(np.mean(draws, axis=0))
    known = all(len(values) > 1 for values in each) and bounds[0] < bounds[1]
    return {
        "mean": float(np.mean([values.mean() for values in each])),
        "ci": bounds if known else None,
        "n": sum(len(values) for values in each),
    }


def pass_at_k(correct: int, samples: int, k: int) -> float:
    """Chance that one of k samples, drawn without replacement from ``samples`` with so many ``correct``, is correct.

    Unbiased: 1 - C(samples - correct, k) / C(samples, k) (arXiv 2107.03374, equation 1).
    """
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def majority_at_k(samples: Sequence[Sample], k: int) -> float:
    """Chance that the answer given most often among k of the samples is correct, over all sets of k.

    Samples without an answer don't vote; of answers with equally many votes one is taken at random.
    """
    chosen = _sets(len(samples), k)
    answers = sorted({sample.answer for sample in samples if sample.answer is not None})
    if not answers:
        return 0.0
    gave = np.array([[sample.answer == answer for answer in answers] for sample in samples], dtype=np.int64)
    right = np.array([[sample.correct] for sample in samples], dtype=bool) & (gave > 0)
    votes, wins = gave[chosen].sum(1), right[chosen].any(1)  # (sets, answers)
    best = (votes == votes.max(1, keepdims=True)) & (votes > 0)
    return float(((best & wins).sum(1) / np.maximum(best.sum(1), 1)).mean())


@functools.lru_cache(maxsize=16)
def _sets(samples: int, k: int) -> npt.NDArray[np.int64]:
    """Sets of k of so many samples (sets, k): all of them, or ``_VOTES`` drawn ones, the same for every question."""
    if math.comb(samples, k) <= _VOTES:
        return np.array(list(itertools.combinations(range(samples), k)))
    rng = np.random.default_rng(metrics.SEED)
    return np.array([rng.choice(samples, size=k, replace=False) for _ in range(_VOTES)])


def at_k(questions: Sequence[Sequence[Sample]]) -> dict[str, dict[str, Any]]:
    """``pass@k`` and ``maj@k`` for k = 1, 2, 4, … and all S samples of each question, with intervals over questions."""
    count = min(len(samples) for samples in questions)
    powers = {2**power for power in range(count.bit_length()) if 2**power <= count}
    found = {}
    for k in sorted(powers | {count}):
        passed = [[pass_at_k(sum(s.correct for s in samples), len(samples), k)] for samples in questions]
        voted = [[majority_at_k(samples, k)] for samples in questions]
        for name, values in ((f"pass@{k}", passed), (f"maj@{k}", voted)):
            found[name] = {key: mean_of(values)[key] for key in ("mean", "ci", "n")}
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
