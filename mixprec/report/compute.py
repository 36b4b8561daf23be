"""Chart of test-time compute: scores of the shortest and longest outputs of each variant, one panel per benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from mixprec.report.benchmarks import METRICS, results_of
from mixprec.report.style import LIGHT, Theme, rc

_ROW = 0.34  # height of a variant, inches
_SHARE = "0.3"


def compute_figure(summary: Mapping[str, Any], theme: Theme = LIGHT) -> Figure | None:
    """For each benchmark and variant the two scores with 95% intervals, and the ratio of lengths; None without any."""
    panels = _panels(summary)
    if not panels:
        return None
    rows = max(len(entries) for entries in panels.values())
    with mpl.rc_context(rc(theme)):
        figure = Figure(figsize=(3.1 * len(panels) + 1.6, _ROW * rows + 1.2), layout=ConstrainedLayoutEngine())
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, (title, entries) in zip(axes, panels.items(), strict=True):
            _panel(ax, entries, theme)
            ax.set_title(title, loc="left", fontsize=10, fontweight="bold")
        axes[0].set_yticks(range(rows), list(next(iter(panels.values()))))
        axes[0].set_ylim(rows - 0.5, -0.7)
        figure.supxlabel(
            "score in percent: filled, the shortest 30%; hollow, the longest", fontsize=9, color=theme.muted
        )
    return figure


def _panels(summary: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Title -> variant -> scores; variants in all panels, benchmarks with too few questions left out."""
    panels: dict[str, dict[str, Mapping[str, Any]]] = {}
    for variant, found in results_of(summary).items():
        for name, entry in found.items():
            if name == "average":
                continue
            metric, values = next(iter(entry["compute"]["shares"][_SHARE].items()))
            if values["n"]:
                title = entry["title"] + ("" if metric == "accuracy" else f" {METRICS[metric]}")
                panels.setdefault(title, {})[variant] = values
    return panels


def _panel(ax: Axes, entries: Mapping[str, Mapping[str, Any]], theme: Theme) -> None:
    for row, values in enumerate(entries.values()):
        for side, offset, fill in (("short", -0.12, theme.accent), ("long", 0.12, theme.background)):
            low, high = values[f"{side}_ci"]
            ax.plot([100 * low, 100 * high], [row + offset] * 2, color=theme.accent, alpha=0.35, linewidth=3, zorder=1)
            ax.plot(100 * values[side], row + offset, "o", color=theme.accent, markerfacecolor=fill, zorder=2)
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "center", "fontsize": 8}
        ax.annotate(f"{values['ratio']:.1f}×", (0.99, row), color=theme.muted, **place)
    ax.set_xlim(-4, 112)
    ax.set_xticks([0, 50, 100])
    ax.grid(axis="x")
    ax.tick_params(length=0)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
