"""Heatmaps for a page: what a template draws as vector graphics, a panel each, with what hovering tells.

A panel's drawing is one unit high for each kind and one wide for each layer, and is stretched to the room there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex

from mixprec.report.grids import Grids, Panel, layer_ticks, scale_ticks, summary_line
from mixprec.report.heatmap import stretch

#: A cell is never narrower, in pixels: a panel of more layers than fit is scrolled.
_NARROWEST = 7
#: Colours of the bar that explains the scale.
_STEPS = 12
#: Left of the cells, in pixels: the names of the kinds, which may be long.
MARGIN = 76


class Cell(NamedTuple):
    """``x``, ``row`` from 0; ``colour`` is empty for what was not measured; ``text`` stands in it where there is room,
    ``dark`` on a light colour; ``wide``: layers that it spans."""

    x: int
    row: int
    colour: str
    tip: str
    wide: int = 1
    text: str = ""
    dark: bool = False


class CellPanel(NamedTuple):
    """One behaviour, format or variant. ``outlined``: the (x, row) of its ``top`` module, named so."""

    title: str
    counts: str
    cells: Sequence[Cell]
    top: str = ""
    outlined: tuple[int, int] | None = None


class CellMap(NamedTuple):
    """Panels on one scale. ``ticks``: (percent across, layer); ``bar``: (colour, percent across) along the scale, and
    ``bar_ticks`` (percent, value); ``alt``: the panels in words."""

    panels: Sequence[CellPanel]
    kinds: Sequence[str]
    layers: int
    scale: str
    bar: Sequence[tuple[str, float]]
    bar_ticks: Sequence[tuple[float, str]]
    alt: str

    @property
    def ticks(self) -> list[tuple[float, int]]:
        """Layers to label."""
        return [(100 * (layer - 0.5) / self.layers, layer) for layer in layer_ticks(self.layers)]

    @property
    def least(self) -> int:
        """Pixels that a panel needs."""
        return max(250, _NARROWEST * self.layers + MARGIN)


def cell_map(grids: Grids) -> CellMap:
    """What a page draws of ``grids``; colours go by the square root of the values, which are heavy-tailed."""
    colours = mpl.colormaps[grids.measure.colours]
    low, high = (float(stretch(end)) for end in (grids.minimum, grids.maximum))

    def share(value: float) -> float:
        return (float(stretch(value)) - low) / (high - low)

    return CellMap(
        panels=[_panel(panel, grids, lambda value: to_hex(colours(share(value)))) for panel in grids.panels],
        kinds=grids.kinds,
        layers=grids.layers,
        scale=grids.measure.scale,
        bar=[(to_hex(colours(step / _STEPS)), 100 * step / _STEPS) for step in range(_STEPS + 1)],
        bar_ticks=[(100 * share(tick), f"{tick:.3g}") for tick in scale_ticks(grids)],
        alt=summary_line(grids),
    )


def _panel(panel: Panel, grids: Grids, colour: Callable[[float], str]) -> CellPanel:
    cells = []
    for row, x in np.ndindex(panel.values.shape):
        if label := grids.labels[row, x]:
            value = float(panel.values[row, x])
            tip = f"{label}\n{panel.hover[row, x]}"
            cells.append(Cell(x, row, "" if math.isnan(value) else colour(value), tip))
    if panel.top is None:
        return CellPanel(panel.title, panel.counts, cells)
    return CellPanel(panel.title, panel.counts, cells, panel.top.label, (panel.top.layer - 1, panel.top.row))
