"""Importance scores as layer-by-kind grids: what the still and the interactive heatmap are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator

from mixprec.errors import UserError
from mixprec.report.formatting import integer, plural, words

#: Above this many layers the four panels lie one under another, below in two columns.
WIDE_LAYERS = 40
#: Perceptually uniform; both drawing libraries know it by this name.
COLOUR_MAP = "viridis"
#: Outline of the top module: stands out on every colour of the map.
OUTLINE = "#e5383b"


class Top(NamedTuple):
    """The most important module of a behaviour: its cell (row, 1-based layer) and label."""

    row: int
    layer: int
    label: str


class Panel(NamedTuple):
    """One behaviour. Arrays have shape (kinds, layers); NaN and rank 0 where the model has no such module."""

    behaviour: str
    title: str
    counts: str
    scores: np.ndarray
    relative: np.ndarray
    ranks: np.ndarray
    top: Top | None


class Grids(NamedTuple):
    """All behaviours of one importance artifact on one scale from 0 to ``maximum``."""

    kinds: list[str]
    layers: int
    modules: int
    labels: np.ndarray
    panels: list[Panel]
    maximum: float

    @property
    def columns(self) -> int:
        """Panels side by side that still leave cells wide enough to see."""
        return 1 if self.layers > WIDE_LAYERS or len(self.panels) < 2 else 2


def build_grids(importance: Mapping[str, Any]) -> Grids:
    """Arrange the scores of a loaded importance artifact.

    Relative importance is RI = I / sum of I over all modules (arXiv 2504.02010); ranks count from 1, ties in
    the order of the modules.

    Raises UserError where a behaviour's scores don't match the modules.
    """
    modules = importance["modules"]
    kinds = list(dict.fromkeys(module["kind"] for module in modules))
    layers = max((module["layer"] for module in modules), default=0)
    cells = [(kinds.index(module["kind"]), module["layer"] - 1) for module in modules]
    rows, columns = np.array([c[0] for c in cells], int), np.array([c[1] for c in cells], int)
    labels = np.full((len(kinds), layers), "", dtype=object)
    labels[rows, columns] = [module["label"] for module in modules]

    panels = []
    for behaviour, entry in importance["behaviours"].items():
        scores = _scores(behaviour, entry, len(modules))
        total = float(np.nansum(scores))
        order = np.argsort(-np.nan_to_num(scores), kind="stable")
        ranks = np.empty(len(modules), int)
        ranks[order] = np.arange(1, len(modules) + 1)
        top = None
        if total > 0:
            best = int(order[0])
            top = Top(int(rows[best]), int(columns[best]) + 1, modules[best]["label"])

        def grid(values: np.ndarray, empty: float = np.nan) -> np.ndarray:
            filled = np.full((len(kinds), layers), empty, dtype=values.dtype)
            filled[rows, columns] = values
            return filled

        relative = scores / total if total > 0 else np.full_like(scores, np.nan)
        panels.append(
            Panel(behaviour, words(behaviour), _counts(entry), grid(scores), grid(relative), grid(ranks, 0), top)
        )
    maximum = max((float(np.nanmax(panel.scores)) for panel in panels if panel.top), default=0.0)
    return Grids(kinds, layers, len(modules), labels, panels, maximum or 1.0)


def _scores(behaviour: str, entry: Mapping[str, Any], count: int) -> np.ndarray:
    """Scores, shape (count,); all NaN for a behaviour that was never seen."""
    scores = entry.get("scores") or [None] * count
    if len(scores) != count:
        raise UserError(
            f"importance: behaviours.{behaviour}.scores has {len(scores)} values for {count} modules; "
            "run `mixprec attribute` again"
        )
    return np.array([np.nan if score is None else score for score in scores], dtype=float)


def _counts(entry: Mapping[str, Any]) -> str:
    if not entry.get("spans"):
        return "no spans"
    found = plural(entry["spans"], "span")
    return f"{found} in {plural(entry['traces'], 'trace')}" if entry.get("traces") else found


def layer_ticks(layers: int) -> list[int]:
    """Layers to label on an axis: the first, the last, and round ones that crowd neither."""
    step = 5 if layers <= WIDE_LAYERS else 10
    if layers <= 12:
        return list(range(1, layers + 1))
    middle = [layer for layer in range(step, layers, step) if layers - layer > step / 2]
    return [1, *middle, layers]


def scale_ticks(maximum: float) -> list[float]:
    """Round scores from 0 to ``maximum``, with one more near 0, where the square-root scale is stretched."""
    ticks = [float(tick) for tick in MaxNLocator(4).tick_values(0, maximum) if 0 < tick <= maximum]
    return [0.0, ticks[0] / 5, *ticks]


def summary_line(grids: Grids) -> str:
    """The heatmaps in words, for those who can't see them."""
    tops = "; ".join(f"{panel.title.lower()}: {panel.top.label}" for panel in grids.panels if panel.top)
    return f"Importance of {integer(grids.modules)} modules, {grids.layers} layers. Top: {tops or 'none'}."
