"""Heatmaps of importance and of its shift: layer by kind, behaviours on one scale (arXiv 2504.02010, Figures 2, 3)."""

from __future__ import annotations

import html
import math
from typing import Any

import matplotlib as mpl
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.colors import FuncNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from plotly.subplots import make_subplots

from mixprec.report.grids import OUTLINE, Grids, Panel, Top, layer_ticks, scale_ticks
from mixprec.report.style import LIGHT, rc

_CELL = 20  # height of a cell of the interactive heatmap, pixels
_TITLES = 62  # above each of its panels
_AXIS = 34  # below each of its panels


def _stretch(values: Any) -> Any:
    """Square root that keeps the sign: values are heavy-tailed, so colours follow it."""
    return np.sign(values) * np.sqrt(np.abs(values))


def _unstretch(values: Any) -> Any:
    return np.sign(values) * np.square(values)


def _scale_title(grids: Grids) -> str:
    return f"{grids.measure.name} (square-root scale)"


def still_heatmap(grids: Grids) -> Figure:
    """Still heatmaps: a panel per behaviour, shared colours, tops outlined; the colour bar shows the values."""
    columns, rows = grids.columns, math.ceil(len(grids.panels) / grids.columns) if grids.panels else 1
    with mpl.rc_context(rc(LIGHT)):
        figure = Figure(
            figsize=(13 if columns > 1 else 12, 2.45 * rows + 0.5),
            layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.09),
        )
        norm = FuncNorm((_stretch, _unstretch), vmin=grids.minimum, vmax=grids.maximum)
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
                label=_scale_title(grids),
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


def interactive_heatmap(grids: Grids, columns: int | None = None) -> go.Figure:
    """The same heatmaps for a web page; hovering shows label, value and rank.

    ``columns`` panels stand side by side; by default two, or one where there are many layers.
    """
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
        coloraxis=_colour_axis(grids, plot),
    )
    return figure


_BARE: dict[str, Any] = {"fixedrange": True, "showgrid": False, "zeroline": False, "ticks": ""}


def _colour_axis(grids: Grids, plot: float) -> dict[str, Any]:
    ticks = scale_ticks(grids)
    return {
        "colorscale": grids.measure.colours,
        "cmin": float(_stretch(grids.minimum)),
        "cmax": float(_stretch(grids.maximum)),
        "colorbar": {
            "orientation": "h",
            "title": {"text": _scale_title(grids), "side": "top", "font": {"size": 12}},
            "tickvals": [float(_stretch(tick)) for tick in ticks],
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
        [f"<b>{html.escape(str(label))}</b><br>{text}" if label else "" for label, text in zip(*line, strict=True)]
        for line in zip(grids.labels, panel.hover, strict=True)
    ]
    return go.Heatmap(
        x=list(range(1, grids.layers + 1)),
        y=list(range(len(grids.kinds))),
        z=[[None if np.isnan(value) else float(_stretch(value)) for value in line] for line in panel.values],
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
