"""A still chart of the variants: mean KL to the original with its 95% interval."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullFormatter, NullLocator

from mixprec.report.compare import compressed, probes
from mixprec.report.formatting import bits, significant
from mixprec.report.style import LIGHT, Theme, rc

Entries = Mapping[str, Mapping[str, Any]]

_LONGEST_NAME = 36
_ROW = 0.34  # height of a variant, inches
# Ratio of an axis' ends from which labels other than powers of ten would run into each other.
_WIDE = 60


def variants_figure(summary: Mapping[str, Any], theme: Theme = LIGHT) -> Figure | None:
    """Mean KL of each variant with its interval on log axes, effective bits beside; None where unmeasured.

    Variants that compress the whole model and probes of a few modules lie orders of magnitude apart, so each
    group has an axis of its own. Variants without damage (a log axis has no 0) and unmeasured ones are named
    below.
    """
    groups = groups_of(summary)
    if not groups:
        return None
    rows = sum(map(len, groups.values()))
    with mpl.rc_context(rc(theme)):
        figure = Figure(
            figsize=(9.2, _ROW * rows + 0.75 * len(groups) + 0.5), layout=ConstrainedLayoutEngine(h_pad=0.1)
        )
        axes = figure.subplots(
            len(groups), 1, squeeze=False, height_ratios=[len(entries) + 0.6 for entries in groups.values()]
        )[:, 0]
        for ax, (title, entries) in zip(axes, groups.items(), strict=True):
            _points(ax, entries, _limits([entries]), theme)
            _names(ax, list(entries))
            ax.set_title(title, loc="left", fontsize=9.5, fontweight="bold")
            _effective_bits(ax, entries, theme)
        label = "mean KL to the original, nats per token (log scale)"
        missing = left_out(summary, [name for entries in groups.values() for name in entries])
        figure.supxlabel(f"{label}\n{missing}" if missing else label, fontsize=9.5, color=theme.muted)
    return figure


def groups_of(summary: Mapping[str, Any], behaviour: str | None = None) -> dict[str, Entries]:
    """Variants with damage to draw, those that compress the whole model before the probes."""
    split = {"whole model compressed": compressed(summary), "only a few modules quantized": probes(summary)}
    groups: dict[str, Entries] = {}
    for title, variants in split.items():
        entries = {
            name: variant if behaviour is None else (variant.get("behaviours") or {}).get(behaviour) or {}
            for name, variant in variants.items()
        }
        shown = {name: entry for name, entry in entries.items() if _positive(entry)}
        if shown:
            groups[title] = shown
    return groups


def _positive(entry: Mapping[str, Any]) -> bool:
    return (entry.get("kl_mean") or 0) > 0


def _limits(panels: Iterable[Entries]) -> tuple[float, float]:
    """Axis limits around all points and intervals, rounded outwards."""
    entries = [entry for panel in panels for entry in panel.values()]
    points = [entry["kl_mean"] for entry in entries]
    bounds = [bound for entry in entries for bound in entry.get("kl_mean_ci") or ()]
    # An interval may reach 0, which a log axis does not; it then ends at the axis' left end.
    low = min(point for point in points + bounds if point >= min(points) / 10)
    steps = [step * 10.0**power for power in range(-300, 20) for step in (1, 1.5, 2, 3, 4, 5, 6, 8)]
    return max(s for s in steps if s < low), min(s for s in steps if s > max(points + bounds))


def _points(ax: Axes, entries: Entries, limits: tuple[float, float], theme: Theme) -> None:
    """One row per entry: the point, and its interval with capped ends."""
    for row, entry in enumerate(entries.values()):
        ax.axhline(row, color=theme.line, linewidth=0.7, zorder=0)
        if entry.get("kl_mean_ci"):
            low, high = entry["kl_mean_ci"]
            ax.plot([max(low, limits[0]), high], [row, row], "|-", color=theme.accent, linewidth=1.6, markersize=8)
        ax.plot(entry["kl_mean"], row, "o", markersize=6, color=theme.accent)
    ax.set_xscale("log")
    ax.set_xlim(limits)
    ax.xaxis.set_major_locator(_locator(limits[1] / limits[0]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="x", linewidth=0.7)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    ax.set_axisbelow(True)


def _locator(ratio: float) -> Locator:
    """Round ticks for an axis whose right end is ``ratio`` times its left; of a wide one only powers of ten."""
    if ratio < 5:
        return MaxNLocator(4, steps=[1, 2, 2.5, 5, 10])
    return LogLocator(subs=(1, 2, 5) if ratio < _WIDE else (1,), numticks=8)


def _names(ax: Axes, names: list[str]) -> None:
    short = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in names]
    ax.set_yticks(range(len(names)), [name.replace("\n", " ") for name in short])
    ax.set_ylim(len(names) - 0.5, -0.8)


def _effective_bits(ax: Axes, entries: Entries, theme: Theme) -> None:
    ax.set_title("effective bits", loc="right", x=1.09, fontsize=9.5, color=theme.muted)
    for row, entry in enumerate(entries.values()):
        place: dict[str, Any] = {"ha": "right", "va": "center", "annotation_clip": False}
        text = bits(entry.get("effective_bits"))
        ax.annotate(text, (1.09, row), xycoords=("axes fraction", "data"), **place)
        ax.annotate(
            significant(entry["kl_mean"]),
            (entry["kl_mean"], row),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            color=theme.muted,
            fontsize=8,
        )


def left_out(summary: Mapping[str, Any], shown: Container[str]) -> str:
    """Which variants a chart of damage has no place for, and why; empty where it shows all."""
    rest = {name: variant for name, variant in (summary.get("variants") or {}).items() if name not in shown}
    none = [name for name, variant in rest.items() if variant.get("kl_mean") == 0]
    missing = [name for name, variant in rest.items() if variant.get("kl_mean") is None]
    notes = [f"KL is 0 for {', '.join(none)}"] if none else []
    notes += [f"not measured: {', '.join(missing)}"] if missing else []
    return "; ".join(notes)
