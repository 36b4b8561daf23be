"""What the paper found about importance, asked of a run of recipes/small/figures.yaml or table6.yaml.

Everything is computed from what attribution left of each trace. Intervals (95%) are of bootstrap resamples of traces,
the same for all models that are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RESAMPLES = 1000
#: From where on the paper calls a correlation moderate: its lowest one is 0.486 (Appendix G).
MODERATE = 0.4


class Importances:
    """Importance of a run's models, each (1 + RESAMPLES, behaviours, modules): of all traces, then of resamples.

    ``scores``: name of a model -> relative importance; ``raw``: the same before it is divided by its sum.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        import torch

        from mixprec.importance import artifact, bootstrap, statistics
        from mixprec.importance.options import AttributionOptions

        found = artifact.load(folder / "importance" / "importance.json")
        options, traces = AttributionOptions.of(found["preset"]), found["traces"]
        self.labels = [module["label"] for module in found["modules"]]
        self.kinds = np.array([module["kind"] for module in found["modules"]])
        layers = np.array([module["layer"] for module in found["modules"]])
        self.last = layers == layers.max()
        self.behaviours = [name for name, entry in found["behaviours"].items() if any(entry["scores"])]
        known = [list(found["behaviours"]).index(name) for name in self.behaviours]
        weights = torch.cat([torch.ones(1, traces, dtype=torch.long), bootstrap.draw(traces, RESAMPLES)])
        slices = _slices(folder)
        self.raw, self.scores = {}, {}
        for name in names:
            paths = statistics.paths(_place(folder, name) / "traces", traces)
            made = bootstrap.importance(paths, found["preset"], slices, options, weights).numpy()[:, known]
            self.raw[name], total = made, made.sum(-1, keepdims=True)
            # A resample without a behaviour's spans says nothing of it.
            self.scores[name] = np.divide(made, total, out=np.full_like(made, np.nan), where=total > 0)


def _place(folder: Path, name: str) -> Path:
    where = {"original": folder, "base": folder / "base"}.get(name, folder / "variants" / name)
    return where / "importance"


def _slices(folder: Path) -> dict[str, slice]:
    """Which columns of a trace's statistics are of which module."""
    import mixprec as mp
    from mixprec.importance.engine import Layout

    student = folder / "distilled"
    model = mp.Model(str(student) if student.is_dir() else "smollm2-135m-instruct")
    return dict(Layout.of_linears(model.load().linears).slices)


def interval(values: np.ndarray) -> list[float] | None:
    """Of resamples; None where they say nothing."""
    values = values[~np.isnan(values)]
    return [float(bound) for bound in np.quantile(values, [0.025, 0.975])] if len(values) else None


def above(interval: list[float] | None, limit: float) -> str:
    """Whether what the interval is of lies above a limit."""
    if interval is None:
        return "open"
    return "holds" if interval[0] > limit else "fails" if interval[1] < limit else "open"


def together(verdicts: Sequence[str]) -> str:
    """Of several parts that all have to hold."""
    return "fails" if "fails" in verdicts else "open" if "open" in verdicts else "holds"


def _ranks(scores: np.ndarray, module: int) -> np.ndarray:
    """Rank from 1 of a module, over the last axis."""
    found: np.ndarray = 1.0 + (scores > scores[..., [module]]).sum(-1)
    found[np.isnan(scores[..., module])] = np.nan
    return found


def _last_up(found: Importances) -> int:
    return int(np.flatnonzero(found.last & (found.kinds == "up"))[0])


def first_overall(folder: Path) -> dict[str, Any]:
    """The last up projection is first by importance summed over behaviours, as Table 3 ranks modules."""
    found = Importances(folder, ["original"])
    ranks = _ranks(found.raw["original"].sum(1), _last_up(found))
    ci = interval(ranks[1:])
    numbers = {f"rank of {found.labels[_last_up(found)]} of {len(found.labels)}": {"value": float(ranks[0]), "ci": ci}}
    return {"verdict": above(None if ci is None else [-ci[1], -ci[0]], -1.5), "numbers": numbers}


def among_first(count: int) -> Callable[[Path], dict[str, Any]]:
    """The last up projection is among the first ``count`` for every behaviour."""

    def judge(folder: Path) -> dict[str, Any]:
        found = Importances(folder, ["original"])
        ranks = _ranks(found.scores["original"], _last_up(found))
        numbers, verdicts = {}, []
        for at, behaviour in enumerate(found.behaviours):
            ci = interval(ranks[1:, at])
            numbers[f"rank, {behaviour.replace('_', ' ')}"] = {"value": float(ranks[0, at]), "ci": ci}
            verdicts.append(above(None if ci is None else [-ci[1], -ci[0]], -count - 0.5))
        return {"verdict": together(verdicts), "numbers": numbers}

    return judge


def gained_by_distillation(folder: Path) -> dict[str, Any]:
    """The last up projection has more of all importance after distillation than before."""
    found = Importances(folder, ["original", "base"])
    gain = (found.scores["original"] - found.scores["base"])[:, :, _last_up(found)]
    numbers, verdicts = {}, []
    for at, behaviour in enumerate(found.behaviours):
        ci = interval(gain[1:, at])
        numbers[f"share gained, {behaviour.replace('_', ' ')}"] = {"value": float(gain[0, at]), "ci": ci}
        verdicts.append(above(ci, 0))
    return {"verdict": together(verdicts), "numbers": numbers}


def _lost(found: Importances, name: str) -> np.ndarray:
    """(1 + RESAMPLES, M) decrease of relative importance from the original to ``name``, mean over behaviours."""
    decrease: np.ndarray = np.nanmean(np.maximum(found.scores["original"] - found.scores[name], 0), axis=1)
    return decrease


def lost_most(part: str, *names: str) -> Callable[[Path], dict[str, Any]]:
    """Modules of the ``part`` (``last layer``, or ``gates``, without the last layer's) lose more than the others do."""

    def judge(folder: Path) -> dict[str, Any]:
        found = Importances(folder, ["original", *names])
        chosen, rest = found.last, ~found.last
        if part == "gates":
            chosen, rest = ~found.last & (found.kinds == "gate"), ~found.last & (found.kinds != "gate")
        numbers, verdicts = {}, []
        for name in names:
            lost = _lost(found, name)
            more = lost[:, chosen].mean(1) - lost[:, rest].mean(1)
            ci = interval(more[1:])
            numbers[f"{name}: mean loss of a module, {part} − others"] = {"value": float(more[0]), "ci": ci}
            share = lost[0, chosen].sum() / lost[0].sum()
            numbers[f"{name}: their part of all losses, and of all modules"] = [float(share), float(chosen.mean())]
            verdicts.append(above(ci, 0))
        return {"verdict": together(verdicts), "numbers": numbers}

    return judge


def lost_alike(one: str, other: str) -> Callable[[Path], dict[str, Any]]:
    """Two ways of compression take importance from the same modules: a rank correlation of what is lost above 0."""

    def judge(folder: Path) -> dict[str, Any]:
        from scipy.stats import spearmanr

        found = Importances(folder, ["original", one, other])
        sides = [_lost(found, name) for name in (one, other)]
        rho = np.array([spearmanr(first, second).statistic for first, second in zip(*sides, strict=True)])
        ci = interval(rho[1:])
        return {
            "verdict": above(ci, 0),
            "numbers": {f"Spearman, {one} and {other}": {"value": float(rho[0]), "ci": ci}},
        }

    return judge


def annotations_agree(folder: Path) -> dict[str, Any]:
    """Two annotations rank the modules alike, by a correlation that is at least moderate for every behaviour."""
    from mixprec.core import artifacts

    found = artifacts.read_versioned(folder / "agreement" / "agreement.json")["importance"]
    numbers = {
        f"Spearman, {behaviour.replace('_', ' ')}": {"value": entry["spearman"], "ci": entry.get("spearman_ci")}
        for behaviour, entry in found["behaviours"].items()
    }
    return {"verdict": together([above(each["ci"], MODERATE) for each in numbers.values()]), "numbers": numbers}
