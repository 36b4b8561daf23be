"""Is a ranking right? Predicted damage of single modules against measured damage: rank correlations and top lists.

Intervals come from resampling the passages that damage was measured on: how far the agreement would change on others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import kendalltau, spearmanr

from mixprec.evaluate.metrics import LEVEL, SEED
from mixprec.plan.sensitivity import Sensitivity
from mixprec.sensitivity.cells import METRICS, Cell, Result

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
    tops = [set(np.argsort(-values, kind="stable")[:TOP].tolist()) for values in (scores, damage)]
    return Agreement(
        float(spearmanr(scores, damage).statistic), float(kendalltau(scores, damage).statistic), len(tops[0] & tops[1])
    )


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
    passages = len(results[0].counts[target])
    damage = means(results, metric, target, np.ones((1, passages)))[0]
    if np.isnan(damage).any():
        return dict.fromkeys(("spearman", "spearman_ci", "kendall", "kendall_ci", f"top{TOP}_overlap"))
    point = agreement(scores, damage)
    drawn = []
    if passages > 1 and point.spearman is not None:
        resampled = means(results, metric, target, draws(passages, resamples))
        drawn = [agreement(scores, row) for row in resampled if not np.isnan(row).any()]
    return {
        "spearman": point.spearman,
        "spearman_ci": _interval([each.spearman for each in drawn]),
        "kendall": point.kendall,
        "kendall_ci": _interval([each.kendall for each in drawn]),
        f"top{TOP}_overlap": point.overlap,
        f"top{TOP}_overlap_ci": _interval([each.overlap for each in drawn]),
    }


def _interval(values: Sequence[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return None
    tail = (1 - LEVEL) / 2
    return [float(bound) for bound in np.quantile(known, [tail, 1 - tail])]


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
                    "ci": _interval([float(v) for v in drawn if not np.isnan(v)]) if len(counts) > 1 else None,
                }
        rows.append(row)
    return rows
