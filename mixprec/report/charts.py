"""Charts of the variants: mean KL to the original with its 95% interval, overall and per behaviour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullFormatter, NullLocator

from mixprec.report.compare import compressed, probes
from mixprec.report.formatting import bits, plural, significant, words
from mixprec.report.style import LIGHT, Theme, rc

Entries = Mapping[str, Mapping[str, Any]]

_LONGEST_NAME = 36
_ROW = 0.34  # height of a variant, inches
# Ratio of an axis' ends from which labels other than powers of ten would run into each other.
_WIDE, _SMALL = 60, 12


def variants_figure(summary: Mapping[str, Any], theme: Theme = LIGHT) -> Figure | None:
    """Mean KL of each variant with its interval on log axes, effective bits beside; None where unmeasured.

    Variants that compress the whole model and probes of a few modules lie orders of magnitude apart, so each
    group has an axis of its own. Variants without damage (a log axis has no 0) and unmeasured ones are named
    below.
    """
    groups = _groups(summary)
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
            _points(ax, entries, _limits([entries]), theme, _WIDE)
            _names(ax, list(entries))
            ax.set_title(title, loc="left", fontsize=9.5, fontweight="bold")
            _effective_bits(ax, entries, theme)
        figure.supxlabel(
            "mean KL to the original, nats per token (log scale)" + _left_out(summary, groups),
            fontsize=9.5,
            color=theme.muted,
        )
    return figure


def behaviours_figure(summary: Mapping[str, Any], theme: Theme = LIGHT) -> Figure | None:
    """The same per behaviour, small multiples that share their axes; None where unmeasured."""
    variants: Entries = summary.get("variants") or {}
    names = dict.fromkeys(name for variant in variants.values() for name in variant.get("behaviours") or {})
    panels = {name: _groups(summary, name) for name in names}
    panels = {name: groups for name, groups in panels.items() if groups}
    titles = list(dict.fromkeys(title for groups in panels.values() for title in groups))
    if not panels:
        return None
    rows = {title: _union(groups.get(title, {}) for groups in panels.values()) for title in titles}
    with mpl.rc_context(rc(theme)):
        height = _ROW * sum(map(len, rows.values())) + 0.7 * len(rows) + 0.9
        figure = Figure(figsize=(11.5, height), layout=ConstrainedLayoutEngine(h_pad=0.1))
        axes = figure.subplots(
            len(rows),
            len(panels),
            sharey="row",
            squeeze=False,
            height_ratios=[len(r) + 0.6 for r in rows.values()],
        )
        for line, (title, shown) in zip(axes, rows.items(), strict=True):
            limits = _limits(groups[title] for groups in panels.values() if title in groups)
            for ax, groups in zip(line, panels.values(), strict=True):
                found = groups.get(title, {})
                _points(ax, {name: found.get(name, {}) for name in shown}, limits, theme, _SMALL)
            _names(line[0], shown)
            line[0].set_title(title, loc="left", fontsize=9, color=theme.muted)
        for ax, name in zip(axes[0], panels, strict=True):
            _panel_title(ax, name, variants, theme)
        figure.supxlabel(
            "mean KL to the original over the behaviour's spans, nats per token (log scale)",
            fontsize=9.5,
            color=theme.muted,
        )
    return figure


def _groups(summary: Mapping[str, Any], behaviour: str | None = None) -> dict[str, Entries]:
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


def _union(panels: Iterable[Entries]) -> list[str]:
    return list(dict.fromkeys(name for entries in panels for name in entries))


def _limits(panels: Iterable[Entries]) -> tuple[float, float]:
    """Axis limits around all points and intervals, rounded outwards."""
    entries = [entry for panel in panels for entry in panel.values()]
    points = [entry["kl_mean"] for entry in entries]
    bounds = [bound for entry in entries for bound in entry.get("kl_mean_ci") or ()]
    # An interval may reach 0, which a log axis does not; it then ends at the axis' left end.
    low = min(point for point in points + bounds if point >= min(points) / 10)
    steps = [step * 10.0**power for power in range(-300, 20) for step in (1, 1.5, 2, 3, 4, 5, 6, 8)]
    return max(s for s in steps if s < low), min(s for s in steps if s > max(points + bounds))


def _points(ax: Axes, entries: Entries, limits: tuple[float, float], theme: Theme, crowded: float) -> None:
    """One row per entry: the point, and its interval with capped ends; ``crowded`` as for ``_locator``."""
    for row, entry in enumerate(entries.values()):
        ax.axhline(row, color=theme.line, linewidth=0.7, zorder=0)
        if not _positive(entry):
            continue
        if entry.get("kl_mean_ci"):
            low, high = entry["kl_mean_ci"]
            ax.plot([max(low, limits[0]), high], [row, row], "|-", color=theme.accent, linewidth=1.6, markersize=8)
        ax.plot(entry["kl_mean"], row, "o", markersize=6, color=theme.accent)
    ax.set_xscale("log")
    ax.set_xlim(limits)
    ax.xaxis.set_major_locator(_locator(limits[1] / limits[0], crowded))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="x", linewidth=0.7)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    ax.set_axisbelow(True)


def _locator(ratio: float, crowded: float) -> Locator:
    """Round ticks for an axis whose right end is ``ratio`` times its left.

    From a ratio of ``crowded`` on, only powers of ten.
    """
    if ratio < 5:
        return MaxNLocator(4, steps=[1, 2, 2.5, 5, 10])
    return LogLocator(subs=(1, 2, 5) if ratio < crowded else (1,), numticks=8)


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


def _panel_title(ax: Axes, behaviour: str, variants: Entries, theme: Theme) -> None:
    found = ((variant.get("behaviours") or {}).get(behaviour) or {} for variant in variants.values())
    tokens = next((entry["tokens"] for entry in found if entry.get("tokens")), None)
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    ax.annotate(words(behaviour), (0, 1), xytext=(0, 36), fontsize=10, fontweight="bold", **place)
    if tokens:
        ax.annotate(plural(tokens, "token"), (0, 1), xytext=(0, 22), fontsize=8.5, color=theme.muted, **place)


def _left_out(summary: Mapping[str, Any], groups: Mapping[str, Entries]) -> str:
    shown = {name for entries in groups.values() for name in entries}
    rest = {name: variant for name, variant in summary["variants"].items() if name not in shown}
    none = [name for name, variant in rest.items() if variant.get("kl_mean") == 0]
    missing = [name for name, variant in rest.items() if variant.get("kl_mean") is None]
    notes = [f"KL is 0 for {', '.join(none)}"] if none else []
    notes += [f"not measured: {', '.join(missing)}"] if missing else []
    return f"\n{'; '.join(notes)}" if notes else ""
