"""Is a ranking right? Predicted damage of single modules against measured damage: rank correlations and top lists.

Intervals come from resampling modules and passages, each by itself and with replacement (Owen, "The pigeonhole
bootstrap", Annals of Applied Statistics 2007): how far the agreement would change on other modules of this kind and
other passages. Those over passages alone take the modules as given, and say nothing about how few they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import kendalltau, rankdata

from mixprec.evaluate.metrics import SEED, percentiles
from mixprec.numerics import chance
from mixprec.plan.sensitivity import Sensitivity
from mixprec.sensitivity.cells import METRICS, Result
from mixprec.sensitivity.sets import Cell

#: Length of the lists whose overlap is counted.
TOP = 10


class Agreement(NamedTuple):
    """Spearman's ρ and Kendall's τ (b) over all modules, how many of the TOP are the same; None without a ranking."""

    spearman: float | None
    kendall: float | None
    overlap: int | None


def agreement(scores: np.ndarray, damage: np.ndarray) -> Agreement:
    """How alike scores and damage (M,) rank modules; all None where one of them is the same everywhere."""
    if len(scores) < 2 or np.ptp(scores) == 0 or np.ptp(damage) == 0:
        return Agreement(None, None, None)
    overlap = int((_top(scores) & _top(damage)).sum())
    return Agreement(float(_spearman(scores, damage)), _kendall(scores, damage), overlap)


def _spearman(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Over the last axis; NaN where one of both is the same everywhere."""
    ranks = [rankdata(values, axis=-1) for values in (one, other)]
    a, b = (values - values.mean(-1, keepdims=True) for values in ranks)
    with np.errstate(invalid="ignore"):
        found: np.ndarray = (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return found


def _kendall(one: np.ndarray, other: np.ndarray) -> float:
    """NaN where one of both is the same everywhere."""
    return float(kendalltau(one, other, method="asymptotic").statistic)  # its exact p-value, unused, costs most


def _top(values: np.ndarray) -> np.ndarray:
    """Which are among the TOP of the last axis; of equal ones the first."""
    found: np.ndarray = rankdata(-values, method="ordinal", axis=-1) <= TOP
    return found


def judge(tables: Sequence[Sensitivity], found: Mapping[Cell, Result], resamples: int) -> list[dict[str, Any]]:
    """One row for every table, format, metric and target, where at least three single modules were measured.

    Tables of a behaviour are judged on that behaviour's tokens, those of all tokens on every target.
    """
    rows = []
    for table in tables:
        for candidate in dict.fromkeys(cell.candidate for cell in found):
            single = [cell for cell in found if cell.candidate == candidate and len(cell.addresses) == 1]
            single = [cell for cell in single if candidate in table.scores[cell.addresses[0]]]
            if len(single) < 3:
                continue
            scores = np.array([table.scores[cell.addresses[0]][candidate] for cell in single])
            results = [found[cell] for cell in single]
            for target in results[0].counts:
                if table.target in ("all", target):
                    rows += [
                        {
                            "scorer": table.scorer,
                            "scores_of": table.target,
                            "format": candidate,
                            "metric": metric,
                            "target": target,
                            "modules": len(single),
                            **_with_intervals(scores, results, metric, target, resamples),
                        }
                        for metric in METRICS
                    ]
    return rows


def draws(passages: int, resamples: int) -> np.ndarray:
    """(resamples, passages): how often each passage counts in each draw with replacement."""
    random = np.random.default_rng(SEED)
    return random.multinomial(passages, [1 / passages] * passages, size=resamples)


def picks(modules: int, resamples: int) -> np.ndarray:
    """(resamples, modules): which modules each draw with replacement has."""
    found: np.ndarray = np.random.default_rng(SEED + 1).integers(modules, size=(resamples, modules))
    return found


def means(results: Sequence[Result], metric: str, target: str, counts: np.ndarray) -> np.ndarray:
    """(draws, cells) means per token, passages counting ``counts`` (draws, passages); NaN where no token counts."""
    sums = np.array([result.sums[metric][target] for result in results])
    sizes = np.array([result.counts[target] for result in results])
    with np.errstate(invalid="ignore"):
        found: np.ndarray = (counts @ sums.T) / (counts @ sizes.T)
    return found


def _with_intervals(
    scores: np.ndarray, results: Sequence[Result], metric: str, target: str, resamples: int
) -> dict[str, Any]:
    """Agreement with intervals over modules and passages, and over passages alone."""
    passages = len(results[0].counts[target])
    damage = means(results, metric, target, np.ones((1, passages)))[0]
    point = Agreement(None, None, None) if np.isnan(damage).any() else agreement(scores, damage)
    known = point.spearman is not None
    resampled = means(results, metric, target, draws(passages, resamples if known else 0))  # (draws, M)
    resampled = resampled[~np.isnan(resampled).any(1)]  # without draws that have no token of the target
    chosen = picks(len(scores), len(resampled))
    both = scores[chosen], np.take_along_axis(resampled, chosen, 1)
    others = resampled if passages > 1 else resampled[:0]
    return {
        "spearman": point.spearman,
        "spearman_ci": _interval(_spearman(*both)),
        "spearman_ci_passages": _interval(_spearman(np.broadcast_to(scores, others.shape), others)),
        "kendall": point.kendall,
        "kendall_ci": _interval([_kendall(*pair) for pair in zip(*both, strict=True)]),
        **_overlap(point.overlap, len(scores)),
        f"top{TOP}_overlap_ci_passages": _interval((_top(scores) & _top(others)).sum(1)),
    }


def _overlap(seen: int | None, modules: int) -> dict[str, Any]:
    """The overlap beside what chance gives: of how many, its mean, and how likely chance gives at least as much."""
    by_chance = None if seen is None else chance.of_overlap(modules, TOP, seen)
    return {
        f"top{TOP}_overlap": seen,
        f"top{TOP}_overlap_of": min(TOP, modules),
        f"top{TOP}_overlap_chance": by_chance and by_chance.expected,
        f"top{TOP}_overlap_chance_of_as_many": by_chance and by_chance.probability,
    }


def _interval(values: Sequence[float] | np.ndarray) -> list[float] | None:
    """The middle of the ``values`` that are no NaN; None with fewer than two."""
    known = [value for value in values if not np.isnan(value)]
    if len(known) < 2:
        return None
    return percentiles(np.array(known))


def cell_rows(found: Mapping[Cell, Result], resamples: int) -> list[dict[str, Any]]:
    """One row for every cell: its metrics per target, each with a bootstrap interval over passages."""
    rows = []
    for cell, result in found.items():
        row: dict[str, Any] = {"name": cell.name, "format": cell.candidate, "modules": list(cell.addresses)}
        for metric in METRICS:
            row[metric] = {}
            for target, counts in result.counts.items():
                drawn = means([result], metric, target, draws(len(counts), resamples))[:, 0]
                row[metric][target] = {
                    "mean": result.mean(metric, target) if sum(counts) else None,
                    "ci": _interval(drawn) if len(counts) > 1 else None,
                }
        rows.append(row)
    return rows
