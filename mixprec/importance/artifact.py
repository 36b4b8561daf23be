"""importance.json: reading it, and what follows from its scores alone: shares, ranks, agreement of two rankings."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, RootModel, model_validator
from scipy.stats import rankdata, spearmanr

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.core.shapes import Count, Number, Pair, Ranks, Shape, check
from mixprec.models.labels import KINDS, label_of

#: Length of the lists of most important modules, and of the overlaps between them.
TOP = 10


class _Module(Shape):
    address: str
    label: str
    layer: Annotated[int, Field(ge=0, le=1000)] | None
    kind: str

    @model_validator(mode="after")
    def _linear_in_a_layer(self) -> _Module:
        if self.layer is None and self.kind in KINDS:
            raise ValueError(f"layer: {self.address} is a linear module and needs one")
        return self


class _Stability(Shape):
    spearman_mean: Number | None
    spearman_p5: Number | None
    top10_overlap_mean: Number


class _Behaviour(Shape):
    traces: Count | None = None
    spans: Count
    tokens: Count | None = None
    scores: list[Any]
    intervals: list[Pair | None] | None = None
    rank_intervals: list[Ranks | None] | None = None
    stability: _Stability | None = None


class _Agreement(Shape):
    spearman: Number | None = None
    top10_overlap: Count | None = None


class _Importance(Shape):
    preset: str = ""
    compared_preset: str | None = None
    options: dict[str, Any] | None = None
    traces: Count | None = None
    modules: list[_Module]
    behaviours: dict[str, _Behaviour]
    resamples: Count | None = None
    skipped: dict[str, Count] | None = None
    cut_traces: Count | None = None
    comparison: dict[str, _Agreement] | None = None
    provenance: dict[str, Any] | None = None


class _Report(Shape):
    scale: Annotated[float, Field(gt=0, lt=1e30)] | None = None


class _Quality(RootModel[dict[str, _Report]]):
    """quality.json."""


def load(path: Path) -> dict[str, Any]:
    """Read an importance artifact.

    Raises UserError where the file is missing, no importance artifact, of another schema version, or broken.
    """
    data = artifacts.read_versioned(path)
    modules, behaviours = data.get("modules"), data.get("behaviours")
    if not isinstance(modules, list) or not _are_modules(modules) or not behaviours or not isinstance(behaviours, dict):
        raise UserError(f"{path}: is no importance.json; 'mixprec attribute' and 'mixprec run' write one")
    for behaviour, entry in behaviours.items():
        check_scores(entry, behaviour, len(modules), str(path))
        for key in ("intervals", "rank_intervals"):
            if isinstance(entry.get(key), list) and len(entry[key]) != len(modules):
                raise UserError(f"{path}: behaviours.{behaviour}.{key} has not one value for each module")
    return check(data, path, _Importance)


def _are_modules(rows: Sequence[Any]) -> bool:
    keys = {"address", "label", "layer", "kind"}
    return len(rows) > 0 and all(isinstance(row, dict) and keys <= row.keys() for row in rows)


def check_scores(entry: Any, behaviour: str, count: int, where: str) -> np.ndarray:
    """Scores of a behaviour, shape (count,); all zero for one that was never seen.

    Raises UserError naming ``where`` (a file) where they don't match the modules or are no numbers >= 0.
    """
    key = f"{where}: behaviours.{behaviour}.scores"
    if not isinstance(entry, Mapping):
        raise UserError(f"{key} is missing; run `mixprec attribute` again")
    scores = entry.get("scores") or ([0.0] * count if not entry.get("spans") else [])
    if not isinstance(scores, list | np.ndarray):
        raise UserError(f"{key} is no list; run `mixprec attribute` again")
    if len(scores) != count:
        raise UserError(f"{key} has {len(scores)} values for {count} modules; run `mixprec attribute` again")
    for index, score in enumerate(scores):
        # NaN compares false, and a bool is an int.
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score < 1e300:
            raise UserError(
                f"{key}[{index}] is {reprlib.repr(score)}, no number from 0 on; run `mixprec attribute` again"
            )
    return np.array(scores, dtype=float)


def scores_of(importance: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """behaviour -> address -> score; behaviours without spans are left out."""
    addresses = [module["address"] for module in importance["modules"]]
    return {
        behaviour: dict(zip(addresses, entry["scores"], strict=True))
        for behaviour, entry in importance["behaviours"].items()
        if entry["spans"]
    }


def awq_scales(path: Path) -> dict[str, float]:
    """label -> mean unnormalised AWQ scale, from the quality.json of a variant that AWQ made.

    Raises UserError for a file without such scales.
    """
    reports = artifacts.read_object(path)
    check(reports, path, _Quality)
    scales = {
        label_of(address): float(report["scale"])
        for address, report in reports.items()
        if report.get("scale") is not None
    }
    if not scales:
        raise UserError(f"{path}: holds no AWQ scales; it is quality.json of a variant with method awq that is wanted")
    return scales


def relative(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """Relative importance RI = I / sum of I over all modules (arXiv 2504.02010 §2.3); zero where all I are zero."""
    values = np.asarray(scores, dtype=float)
    total = values.sum()
    shares: np.ndarray = values / total if total > 0 else np.zeros_like(values)
    return shares


def ranks(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """Ranks from 1, the highest score first, ties in the order of the modules, those without a score (NaN) last; over
    the last axis."""
    falling = np.nan_to_num(-np.asarray(scores, dtype=float), nan=np.inf)
    ordered: np.ndarray = rankdata(falling, method="ordinal", axis=-1).astype(int)
    return ordered


def agreement(one: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray) -> dict[str, float | int | None]:
    """How alike two lists of scores rank the same modules: Spearman's rho, and how many of the TOP are the same.

    None where one of them ranks nothing, all its scores being the same.
    """
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return {"spearman": None, f"top{TOP}_overlap": None}
    both = (ranks(one) <= TOP) & (ranks(other) <= TOP)
    return {"spearman": float(spearmanr(one, other).statistic), f"top{TOP}_overlap": int(both.sum())}


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """behaviour -> agreement of two artifacts on the same modules, for the behaviours that both have."""
    return {
        behaviour: agreement(entry["scores"], second["behaviours"][behaviour]["scores"])
        for behaviour, entry in first["behaviours"].items()
        if behaviour in second["behaviours"]
    }


def top_modules(importance: Mapping[str, Any], count: int = TOP) -> dict[str, Any]:
    """Per behaviour its spans and its ``count`` highest modules, with scores, shares of the total and intervals of the
    rank."""
    modules = importance["modules"]
    found = {}
    for behaviour, entry in importance["behaviours"].items():
        shares = relative(entry["scores"])
        order = np.argsort(ranks(entry["scores"]))[:count]
        intervals = entry.get("rank_intervals")
        found[behaviour] = {
            "spans": entry["spans"],
            "traces": entry["traces"],
            "top_modules": [
                {
                    "rank": rank,
                    "label": modules[i]["label"],
                    "address": modules[i]["address"],
                    "score": entry["scores"][i],
                    "relative": float(shares[i]),
                    "rank_interval": intervals[i] if intervals else None,
                }
                for rank, i in enumerate(order, 1)
            ]
            if entry["spans"]
            else [],
        }
    return found
