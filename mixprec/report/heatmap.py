"""Heatmaps of importance and of its shift: layer by kind, behaviours on one scale (arXiv 2504.02010, Figures 2, 3)."""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import FuncNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from mixprec.report.grids import OUTLINE, Grids, Panel, Top, layer_ticks, scale_ticks
from mixprec.report.style import LIGHT, rc


def stretch(values: Any) -> Any:
    """Square root that keeps the sign: values are heavy-tailed, so colours follow it."""
    return np.sign(values) * np.sqrt(np.abs(values))


def unstretch(values: Any) -> Any:
    return np.sign(values) * np.square(values)


def still_heatmap(grids: Grids) -> Figure:
    """Still heatmaps: a panel per behaviour, shared colours, tops outlined; the colour bar shows the values."""
    columns, rows = grids.columns, math.ceil(len(grids.panels) / grids.columns) if grids.panels else 1
    with mpl.rc_context(rc(LIGHT)):
        figure = Figure(
            figsize=(13 if columns > 1 else 12, 2.45 * rows + 0.5),
            layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.09),
        )
        norm = FuncNorm((stretch, unstretch), vmin=grids.minimum, vmax=grids.maximum)
        axes = [figure.add_subplot(rows, columns, 1 + index) for index in range(len(grids.panels))]
        for index, (panel, ax) in enumerate(zip(grids.panels, axes, strict=True)):
            mesh = _draw(ax, grids, panel, norm)
            if index >= len(axes) - columns:
                ax.set_xlabel("layer")
        if axes:
            bar = figure.colorbar(
                mesh,
                ax=axes,
                ticks=scale_ticks(grids),
                aspect=20 * rows,
                pad=0.015,
                shrink=0.9,
                label=grids.measure.scale,
            )
            bar.ax.set_yticklabels([f"{tick:.3g}" for tick in scale_ticks(grids)])
            bar.outline.set_visible(False)
    return figure


def _draw(ax: Axes, grids: Grids, panel: Panel, norm: FuncNorm) -> Any:
    edges = np.arange(grids.layers + 1) + 0.5
    mesh = ax.pcolormesh(
        edges,
        np.arange(len(grids.kinds) + 1) - 0.5,
        np.ma.masked_invalid(panel.values),
        norm=norm,
        cmap=grids.measure.colours,
        edgecolors="white",
        linewidth=0.6 if grids.layers <= 40 else 0.4,
    )
    ax.set_xticks(layer_ticks(grids.layers))
    ax.set_yticks(range(len(grids.kinds)), grids.kinds)
    ax.invert_yaxis()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    title = ax.set_title(panel.title, loc="left", fontweight="bold", pad=18)
    ax.annotate(
        panel.counts,
        (1, 0),
        xycoords=title,
        xytext=(7, 0),
        textcoords="offset points",
        color=LIGHT.muted,
        va="bottom",
    )
    if panel.top:
        row, layer, _ = panel.top
        ax.add_patch(
            Rectangle((layer - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=OUTLINE, linewidth=1.8, clip_on=False)
        )
        text, side, edge = _pointer(panel.top, grids.layers)
        ax.annotate(
            text,
            (edge, -0.5),
            xytext=(0, 4.5),
            textcoords="offset points",
            ha=side,
            color=OUTLINE,
            fontweight="bold",
        )
    return mesh


def _pointer(top: Top, layers: int) -> tuple[str, str, float]:
    """Text over the top cell's column, its alignment and the edge it starts at: the arrow is over the cell.

    The text grows towards the middle, so that it stays over its panel.
    """
    if top.layer <= layers / 2:
        return f"▾ {top.label}", "left", top.layer - 0.5
    return f"{top.label} ▾", "right", top.layer + 0.5
