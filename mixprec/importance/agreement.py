"""What another annotation of the same traces does to importance and its ranking (arXiv 2504.02010, Appendix G)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from mixprec.importance import artifact, bootstrap, statistics
from mixprec.importance.engine import Layout
from mixprec.importance.options import RESAMPLES, AttributionOptions, Preset
from mixprec.models.labels import label_of
from mixprec.models.load import LoadedModel
from mixprec.traces.store import BEHAVIOURS


def compare(
    loaded: LoadedModel, first: Path, second: Path, traces: int, preset: Preset, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """How alike two folders of ``attribute`` rank the modules; both are of the same ``traces`` traces.

    Per behaviour and, as ``mean``, over those that both have: Spearman's rho over all linear modules, and how many of
    the top ten are in both. Intervals ``*_ci`` are of resamples in which both sides have the same traces. ``moved``:
    the top modules of either side, by importance summed over behaviours, with their rank in both.
    """
    layout = Layout.of_linears(loaded.linears)
    weights = torch.ones(1, traces, dtype=torch.long)
    if resamples and traces > 1:
        weights = torch.cat([weights, bootstrap.draw(traces, resamples)])
    options = AttributionOptions.of(preset)
    sides = [
        bootstrap.importance(
            statistics.paths(folder / "traces", traces), preset, layout.slices, options, weights
        ).numpy()
        for folder in (first, second)
    ]
    rho, overlap = _spearman(*sides), _overlap(*sides)
    found = {
        behaviour: _figures(rho[:, at], overlap[:, at])
        for at, behaviour in enumerate(BEHAVIOURS)
        if not np.isnan(rho[0, at])
    }
    known = [at for at, behaviour in enumerate(BEHAVIOURS) if behaviour in found]
    mean = _figures(_mean(rho[:, known]), _mean(overlap[:, known])) if known else {}
    return {
        "preset": preset,
        "traces": traces,
        "modules": len(layout.slices),
        "resamples": len(weights) - 1,
        "behaviours": found,
        "mean": mean,
        "moved": _moved([label_of(address) for address in layout.slices], *(side[0].sum(0) for side in sides)),
    }


def halves(
    loaded: LoadedModel, folder: Path, traces: int, preset: Preset, splits: int = RESAMPLES
) -> dict[str, dict[str, Any]]:
    """How alike two halves of one folder's traces rank the modules: what so few traces leave to chance.

    By behaviour and, as ``mean``, over all: ``spearman``, the mean over random splits in two halves that share no
    trace, and ``spearman_range``, in which 95% of the splits lie. With an odd number of traces one is left out.
    """
    layout = Layout.of_linears(loaded.linears)
    random = np.random.default_rng(bootstrap.SEED)
    orders = np.stack([random.permutation(traces) for _ in range(splits)])
    half = traces // 2
    weights = np.zeros((2 * splits, traces), dtype=np.int64)
    for side in range(2):
        part = orders[:, side * half : (side + 1) * half]
        np.put_along_axis(weights[side * splits : (side + 1) * splits], part, 1, axis=1)
    scores = bootstrap.importance(
        statistics.paths(folder / "traces", traces),
        preset,
        layout.slices,
        AttributionOptions.of(preset),
        torch.from_numpy(weights),
    ).numpy()
    rho = _spearman(scores[:splits], scores[splits:])
    parts = {"mean": _mean(rho), **{name: rho[:, at] for at, name in enumerate(BEHAVIOURS)}}
    return {name: _spread(values[~np.isnan(values)]) for name, values in parts.items()}


def _spread(values: np.ndarray) -> dict[str, Any]:
    tails = [(1 - bootstrap.LEVEL) / 2, (1 + bootstrap.LEVEL) / 2]
    low, high = np.quantile(values, tails) if len(values) else (np.nan, np.nan)
    return {
        "spearman": round(float(values.mean()), 6) if len(values) else np.nan,
        "spearman_range": [round(float(low), 6), round(float(high), 6)],
    }


def _mean(values: np.ndarray) -> np.ndarray:
    """Over behaviours (B,); NaN where a resample has none of them."""
    known = ~np.isnan(values)
    sums = np.where(known, values, 0).sum(1)
    mean: np.ndarray = np.divide(sums, known.sum(1), out=np.full(len(values), np.nan), where=known.any(1))
    return mean


def _spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(B, C) rho over modules of scores (B, C, M); NaN where one side ranks nothing."""
    sides = []
    for scores in (first, second):
        ranks = rankdata(scores, axis=2)
        centred = ranks - ranks.mean(2, keepdims=True)
        length = np.linalg.norm(centred, axis=2, keepdims=True)
        sides.append(np.divide(centred, length, out=np.full(centred.shape, np.nan), where=length > 0))
    rho: np.ndarray = np.sum(sides[0] * sides[1], axis=2)
    return rho


def _overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(B, C) modules that are among the top ten of both; NaN where one side ranks nothing."""
    tops = [artifact.ranks(scores) <= artifact.TOP for scores in (first, second)]
    known = np.ptp(first, axis=2).astype(bool) & np.ptp(second, axis=2).astype(bool)
    shared: np.ndarray = np.where(known, (tops[0] & tops[1]).sum(2), np.nan)
    return shared


def _figures(rho: np.ndarray, overlap: np.ndarray) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, values in (("spearman", rho), (f"top{artifact.TOP}_overlap", overlap)):
        found[name] = round(float(values[0]), 6)
        resampled = values[1:][~np.isnan(values[1:])]
        if len(resampled):
            tails = [(1 - bootstrap.LEVEL) / 2, (1 + bootstrap.LEVEL) / 2]
            found[f"{name}_ci"] = [round(float(bound), 6) for bound in np.quantile(resampled, tails)]
    return found


def _moved(labels: Sequence[str], first: np.ndarray, second: np.ndarray) -> list[dict[str, Any]]:
    ranks = [artifact.ranks(scores) for scores in (first, second)]
    tops = [at for at in range(len(labels)) if min(ranks[0][at], ranks[1][at]) <= artifact.TOP]
    rows = [{"label": labels[at], "first": int(ranks[0][at]), "second": int(ranks[1][at])} for at in tops]
    return sorted(rows, key=lambda row: (row["first"], row["second"]))
