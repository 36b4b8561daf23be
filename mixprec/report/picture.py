"""How the linear modules lie in a checkpoint, as a picture of their bits."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from mixprec.models.decoder import Linear
from mixprec.models.labels import kinds_among
from mixprec.report.style import LIGHT, rc

#: Bits per weight at the upper end of the scale; what lies above has the same colour.
_MOST_BITS = 16.0


def layout_figure(modules: Sequence[Linear], bits: Sequence[float], title: str) -> Figure:
    """Layers along x, kinds along y; ``bits`` per weight, scales included, as colours, numbers where there is room."""
    kinds, layers = kinds_among(module.kind for module in modules), max(module.layer for module in modules)
    total, weights = np.zeros((len(kinds), layers)), np.zeros((len(kinds), layers))
    for module, value in zip(modules, bits, strict=True):
        # Experts of one layer and kind have one cell, and their mean in it.
        cell = kinds.index(module.kind), module.layer - 1
        total[cell] += value * module.weights
        weights[cell] += module.weights
    grid = np.where(weights > 0, total / np.maximum(weights, 1), np.nan)
    with mpl.rc_context(rc(LIGHT)):
        figure = Figure(figsize=(max(5.0, 0.32 * layers + 2), 3.0), layout="constrained")
        ax = figure.add_subplot()
        image = ax.imshow(grid, aspect="auto", cmap="viridis", vmin=0, vmax=_MOST_BITS)
        ax.set_yticks(range(len(kinds)), kinds)
        ax.set_xticks(
            range(0, layers, max(1, layers // 16)), [str(n + 1) for n in range(0, layers, max(1, layers // 16))]
        )
        ax.set_xlabel("layer")
        ax.set_title(title)
        if layers <= 40:
            for row, column in np.argwhere(~np.isnan(grid)):
                value = grid[row, column]
                colour = "white" if value < 9 else "black"
                ax.text(column, row, f"{value:.3g}", ha="center", va="center", fontsize=6, color=colour)
        beyond = "max" if np.nanmax(grid) > _MOST_BITS else "neither"
        figure.colorbar(image, label="bits per weight", ticks=range(0, int(_MOST_BITS) + 1, 4), extend=beyond)
    return figure
