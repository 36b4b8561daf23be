"""Importance heatmaps, layer by kind, all behaviours on one colour scale (arXiv 2504.02010, Figures 2, 3)."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from plotly.subplots import make_subplots

from mixprec.report.formatting import integer, significant
from mixprec.report.grids import COLOUR_MAP, OUTLINE, Grids, Panel, Top, build_grids, layer_ticks, scale_ticks
from mixprec.report.style import LIGHT, rc

_SCALE_TITLE = "importance (square-root scale)"
_CELL = 20  # height of a cell of the interactive heatmap, pixels
_TITLES = 62  # above each of its panels
_AXIS = 34  # below each of its panels


def importance_figure(importance: Mapping[str, Any]) -> Figure:
    """Still heatmaps of a loaded importance artifact: a panel per behaviour, shared colours, tops outlined.

    Scores are heavy-tailed, so colours follow their square root; the colour bar shows the scores themselves.
    """
    grids = build_grids(importance)
    columns, rows = grids.columns, math.ceil(len(grids.panels) / grids.columns) if grids.panels else 1
    with mpl.rc_context(rc(LIGHT)):
        figure = Figure(
            figsize=(13 if columns > 1 else 12, 2.45 * rows + 0.5),
            layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.09),
        )
        norm = PowerNorm(0.5, vmin=0, vmax=grids.maximum)
        axes = [figure.add_subplot(rows, columns, 1 + index) for index in range(len(grids.panels))]
        for index, (panel, ax) in enumerate(zip(grids.panels, axes, strict=True)):
            mesh = _draw(ax, grids, panel, norm)
            if index >= len(axes) - columns:
                ax.set_xlabel("layer")
        if axes:
            bar = figure.colorbar(
                mesh,
                ax=axes,
                ticks=scale_ticks(grids.maximum),
                aspect=20 * rows,
                pad=0.015,
                shrink=0.9,
                label=_SCALE_TITLE,
            )
            bar.ax.set_yticklabels([f"{tick:.3g}" for tick in scale_ticks(grids.maximum)])
            bar.outline.set_visible(False)
    return figure


def _draw(ax: Axes, grids: Grids, panel: Panel, norm: PowerNorm) -> Any:
    edges = np.arange(grids.layers + 1) + 0.5
    mesh = ax.pcolormesh(
        edges,
        np.arange(len(grids.kinds) + 1) - 0.5,
        np.ma.masked_invalid(panel.scores),
        norm=norm,
        cmap=COLOUR_MAP,
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


def interactive_heatmap(importance: Mapping[str, Any], columns: int | None = None) -> go.Figure:
    """The same heatmaps for a web page; hovering shows label, score, share of all importance and rank.

    ``columns`` panels stand side by side; by default two, or one where there are many layers.
    """
    grids = build_grids(importance)
    columns = columns or grids.columns
    rows = max(1, math.ceil(len(grids.panels) / columns))
    inner = _CELL * len(grids.kinds)
    plot = rows * inner + (rows - 1) * (_TITLES + _AXIS)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        vertical_spacing=(_TITLES + _AXIS) / plot if rows > 1 else 0,
        horizontal_spacing=0.06,
    )
    gap = 1 if grids.layers <= 40 else 0.5
    for index, panel in enumerate(grids.panels):
        row, column = index // columns + 1, index % columns + 1
        figure.add_trace(_trace(grids, panel, gap), row=row, col=column)
        _annotate(figure, grids, panel, row, column)
    figure.update_xaxes(tickvals=layer_ticks(grids.layers), title=None, constrain="domain", **_BARE)
    figure.update_yaxes(
        tickvals=list(range(len(grids.kinds))),
        ticktext=grids.kinds,
        range=[len(grids.kinds) - 0.5, -0.5],
        ticklabelstandoff=4,
        **_BARE,
    )
    figure.update_layout(
        template="none",
        height=plot + _TITLES + 84,
        margin={"l": 46, "r": 6, "t": _TITLES, "b": 84},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 12},
        dragmode=False,
        coloraxis=_colour_axis(grids.maximum, plot),
    )
    return figure


_BARE: dict[str, Any] = {"fixedrange": True, "showgrid": False, "zeroline": False, "ticks": ""}


def _colour_axis(maximum: float, plot: float) -> dict[str, Any]:
    ticks = scale_ticks(maximum)
    return {
        "colorscale": COLOUR_MAP,
        "cmin": 0,
        "cmax": math.sqrt(maximum),
        "colorbar": {
            "orientation": "h",
            "title": {"text": _SCALE_TITLE, "side": "top", "font": {"size": 12}},
            "tickvals": [math.sqrt(tick) for tick in ticks],
            "ticktext": [f"{tick:.3g}" for tick in ticks],
            "tickangle": 0,
            "thickness": 9,
            "len": 280,
            "lenmode": "pixels",
            "x": 0.5,
            "xanchor": "center",
            "y": -26 / plot,
            "yanchor": "top",
            "outlinewidth": 0,
        },
    }


def _trace(grids: Grids, panel: Panel, gap: float) -> go.Heatmap:
    hover = [
        [
            ""
            if not label
            else f"<b>{html.escape(str(label))}</b><br>importance {significant(score)}"
            f"<br>{'–' if np.isnan(share) else f'{100 * share:.2f}%'} of all importance"
            f"<br>rank {rank} of {integer(grids.modules)}"
            for label, score, share, rank in zip(*line, strict=True)
        ]
        for line in zip(grids.labels, panel.scores, panel.relative, panel.ranks, strict=True)
    ]
    return go.Heatmap(
        x=list(range(1, grids.layers + 1)),
        y=list(range(len(grids.kinds))),
        z=[[None if np.isnan(score) else float(score) ** 0.5 for score in line] for line in panel.scores],
        text=hover,
        hovertemplate="%{text}<extra></extra>",
        coloraxis="coloraxis",
        xgap=gap,
        ygap=gap,
        name=panel.title,
    )


def _annotate(figure: go.Figure, grids: Grids, panel: Panel, row: int, column: int) -> None:
    place = {"row": row, "col": column, "showarrow": False, "yref": "y domain", "y": 1, "yanchor": "bottom"}
    figure.add_annotation(
        text=f"<b>{html.escape(panel.title)}</b>  {html.escape(panel.counts)}",
        xref="x domain",
        x=0,
        xanchor="left",
        xshift=-36,  # over the names of the kinds: the line is long for a phone
        yshift=18,
        font={"size": 13},
        **place,
    )
    if panel.top is None:
        return
    top_row, layer, _ = panel.top
    text, side, edge = _pointer(panel.top, grids.layers)
    figure.add_annotation(
        text=f"<b>{html.escape(text)}</b>",
        x=edge,
        xanchor=side,
        xref="x",
        yshift=2,
        font={"color": OUTLINE, "size": 12},
        **place,
    )
    figure.add_shape(
        type="rect",
        x0=layer - 0.5,
        x1=layer + 0.5,
        y0=top_row - 0.5,
        y1=top_row + 0.5,
        line={"color": OUTLINE, "width": 2},
        row=row,
        col=column,
    )
