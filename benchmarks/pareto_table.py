"""The table and the picture of pareto.py: all pipelines, size against KL, with the front of the best ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from intervals import interval
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from pareto_figures import kl, who
from pareto_pipelines import OURS, PIPELINES

from mixprec.report.style import LIGHT, Theme, rc, save_figure

_MARKS = {OURS: "o", "autoround": "s", "modelopt": "D", "llmcompressor": "^", "gptqmodel": "v", "llamacpp": "P"}
_COLUMNS = ("", "bits", "file, MB", "KL", "on calibration", "CPU s", "draws", "machine")
Rows = Mapping[str, Sequence[Any]]


def table(rows: Rows) -> str:
    """All pipelines by size and KL, as Markdown; a machine's letter stands for it."""
    machines = list(dict.fromkeys(row["machine"] for draws in rows.values() for row in draws))
    letters = {name: chr(ord("A") + number) for number, name in enumerate(machines)}
    head = [f"| {' | '.join(_COLUMNS)} |", "|---|--:|--:|--:|--:|--:|--:|---|"]
    lines = [_line(name, rows[name], letters) for name in sorted(rows, key=lambda name: _place(rows[name]))]
    notes = [f"{letter}: {name}, one thread a row unless it says otherwise." for name, letter in letters.items()]
    seconds = "CPU seconds compare within a machine only; they are those of the first draw, making the plan included."
    picture = "![Effective bits against KL](results/pareto.png)"
    return "\n".join([*head, *lines, "", *notes, seconds, "", picture]) if rows else ""


def _place(draws: Sequence[Any]) -> tuple[float, float]:
    return draws[0]["effective_bits"], kl(draws)


def _line(name: str, draws: Sequence[Any], letters: Mapping[str, str]) -> str:
    first, one = draws[0], PIPELINES[name.partition("@")[0]]
    low, high = interval([draws], lambda own: own)
    seen = sum(row["kl_calibration"] for row in draws) / len(draws)
    cells = [
        f"{one.who}: {one.title}",
        f"{first['effective_bits']:.2f}",
        f"{first['file_bytes'] / 1e6:.1f}",
        f"{kl(draws):.3f} [{low:.3f}, {high:.3f}]",
        f"{seen:.3f}",
        f"{first['cpu_seconds']:,.0f}",
        f"{len(draws)}",
        letters[first["machine"]],
    ]
    return f"| {' | '.join(cells)} |"


def front(rows: Rows) -> list[str]:
    """Pipelines that none is better than at no more bits, by size."""
    found: list[str] = []
    for name in sorted(rows, key=lambda name: _place(rows[name])):
        if not found or kl(rows[name]) < kl(rows[found[-1]]):
            found.append(name)
    return found


def draw(rows: Rows, stem: Path) -> list[Path]:
    """The picture as ``stem``.png; nothing without rows."""
    return save_figure(picture(rows), stem, ("png",)) if rows else []


def picture(rows: Rows, theme: Theme = LIGHT) -> Figure:
    """Effective bits against KL on a logarithmic axis, with intervals; the front as a line."""
    with mpl.rc_context(rc(theme)):
        figure = Figure(figsize=(8.4, 5.2), layout="constrained")
        ax = figure.subplots()
        best = front(rows)
        at = [(rows[name][0]["effective_bits"], kl(rows[name])) for name in best]
        ax.step(*zip(*at, strict=True), where="post", color=theme.line, linewidth=2.5, zorder=0, label="the front")
        for maker in dict.fromkeys(map(who, rows)):
            _points(ax, {name: draws for name, draws in rows.items() if who(name) == maker}, maker, theme)
        _names(ax, rows, theme)
        ax.margins(x=0.22)  # room for names at the right end
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5), numticks=12))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel("effective bits per weight of the linear modules")
        ax.set_ylabel("mean KL to the original, nats per token (log scale)")
        ax.grid(linewidth=0.7)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
    return figure


def _points(ax: Axes, rows: Rows, maker: str, theme: Theme) -> None:
    color = theme.accent if maker == OURS else theme.muted
    for draws in rows.values():
        ends = interval([draws], lambda own: own)
        ax.plot([draws[0]["effective_bits"]] * 2, ends, "_-", color=color, linewidth=1.0, alpha=0.6)
    at = [(draws[0]["effective_bits"], kl(draws)) for draws in rows.values()]
    ax.plot(*zip(*at, strict=True), _MARKS[maker], color=color, markersize=5.5, linestyle="", label=maker)


def _names(ax: Axes, rows: Rows, theme: Theme) -> None:
    """Of each maker's best pipeline at a size, and of the front; the table has all."""
    for name in named(rows):
        place = (rows[name][0]["effective_bits"], kl(rows[name]))
        color = theme.accent if who(name) == OURS else theme.muted
        title = PIPELINES[name.partition("@")[0]].title
        ax.annotate(title, place, xytext=(7, -3), textcoords="offset points", color=color, fontsize=8)


def named(rows: Rows) -> list[str]:
    """What the picture names: the front, and each maker's best at a size, unless a name is within 3% of its KL."""
    found = front(rows)
    for name in sorted(rows, key=lambda name: _place(rows[name])):
        bits, value = _place(rows[name])
        alike = [other for other in rows if who(other) == who(name) and abs(_place(rows[other])[0] - bits) < 0.1]
        near = [other for other in found if abs(_place(rows[other])[0] - bits) < 0.1]
        crowded = any(abs(kl(rows[other]) / value - 1) < 0.03 for other in near)
        if name not in found and not crowded and value <= min(kl(rows[other]) for other in alike):
            found.append(name)
    return found
