"""The table and the picture of pareto.py: all pipelines, size against KL, with the front of the best ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from intervals import interval
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from pareto_figures import kl, who
from pareto_pipelines import MIXTURES, OURS, Job

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
    picture = "![Size against KL](results/pareto.png)"
    return "\n".join([*head, *lines, "", *notes, seconds, "", picture]) if rows else ""


def _place(draws: Sequence[Any]) -> tuple[float, float]:
    return draws[0]["effective_bits"], kl(draws)


def called(name: str) -> str:
    """What table and picture call a pipeline; of the files that are made to one of llama.cpp's mixtures, which."""
    job = Job.parse(name)
    return f"{job.pipeline.title}, {job.size.upper()}" if job.size in MIXTURES else job.pipeline.title


def _line(name: str, draws: Sequence[Any], letters: Mapping[str, str]) -> str:
    first = draws[0]
    low, high = interval([draws], lambda own: own)
    seen = sum(row["kl_calibration"] for row in draws) / len(draws)
    cells = [
        f"{who(name)}: {called(name)}",
        f"{first['effective_bits']:.2f}",
        f"{first['file_bytes'] / 1e6:.1f}",
        f"{kl(draws):.3f} [{low:.3f}, {high:.3f}]",
        f"{seen:.3f}",
        "–" if first["cpu_seconds"] is None else f"{first['cpu_seconds']:,.0f}",
        f"{len(draws)}",
        letters[first["machine"]],
    ]
    return f"| {' | '.join(cells)} |"


def draw(rows: Rows, stem: Path) -> list[Path]:
    """The picture as ``stem``.png; nothing without rows."""
    return save_figure(picture(rows), stem, ("png",)) if rows else []


class Panel(NamedTuple):
    """A part of the picture: its rows, how large they are, and what is named of them."""

    title: str
    label: str
    size: Callable[[Any], float]
    rows: Rows

    def place(self, name: str) -> tuple[float, float]:
        return self.size(self.rows[name][0]), kl(self.rows[name])

    def front(self) -> list[str]:
        """Pipelines that none is better than at no more size, by size."""
        found: list[str] = []
        for name in sorted(self.rows, key=self.place):
            if not found or kl(self.rows[name]) < kl(self.rows[found[-1]]):
                found.append(name)
        return found

    def named(self) -> list[str]:
        """The front and, by size and KL, whatever leaves room for its name between those that are named already."""
        found = self.front()
        values = [kl(draws) for draws in self.rows.values()]
        room = 0.04 * log(max(values) / min(values))
        for name in sorted(self.rows, key=self.place):
            if name not in found and not any(self._near(name, other, room) for other in found):
                found.append(name)
        return found

    def _near(self, one: str, other: str, room: float) -> bool:
        (size, value), (there, its) = self.place(one), self.place(other)
        sizes = [self.size(draws[0]) for draws in self.rows.values()]
        wide = max(0.6 * (max(sizes) - min(sizes)), 1e-9)
        return abs(size - there) <= wide and abs(log(value / its)) < room


def panels(rows: Rows) -> list[Panel]:
    """Packed files by the bits of their linears, and all files by their bytes."""
    packed = {name: draws for name, draws in rows.items() if draws[0]["format"] != "gguf"}
    bits = "effective bits per weight of the linear modules"
    alike = Panel("linear modules alone, the rest in 16 bits", bits, lambda row: float(row["effective_bits"]), packed)
    files = Panel("whole files", "file, MB", lambda row: float(row["file_bytes"]) / 1e6, rows)
    return [panel for panel in (alike, files) if panel.rows]


def picture(rows: Rows, theme: Theme = LIGHT) -> Figure:
    """Size against KL on a logarithmic axis, with intervals of what is named; fronts as lines."""
    with mpl.rc_context(rc(theme)):
        every = panels(rows)
        figure = Figure(figsize=(6.2 * len(every), 5.4), layout="constrained")
        for ax, panel in zip(figure.subplots(1, len(every), squeeze=False)[0], every, strict=True):
            _fill(ax, panel, theme)
        marks = {label: mark for ax in figure.axes for mark, label in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(marks.values(), marks.keys(), loc="outside upper center", ncols=len(marks), frameon=False)
    return figure


def _fill(ax: Axes, panel: Panel, theme: Theme) -> None:
    at = [panel.place(name) for name in panel.front()]
    ax.step(*zip(*at, strict=True), where="post", color=theme.line, linewidth=2.5, zorder=0, label="the front")
    for maker in dict.fromkeys(map(who, panel.rows)):
        at = [panel.place(name) for name in panel.rows if who(name) == maker]
        color = theme.accent if maker == OURS else theme.muted
        ax.plot(*zip(*at, strict=True), _MARKS[maker], color=color, markersize=5.5, linestyle="", label=maker)
    for name in panel.named():
        color = theme.accent if who(name) == OURS else theme.muted
        (size, value), ends = panel.place(name), interval([panel.rows[name]], lambda own: own)
        ax.plot([size] * 2, ends, "_-", color=color, linewidth=0.8, markersize=4, alpha=0.45)
        clear = [withStroke(linewidth=2.5, foreground=theme.background)]  # lines that cross a name don't hide it
        ax.annotate(
            called(name), (size, value), xytext=(8, -3), textcoords="offset points", color=color, fontsize=7.5,
            path_effects=clear,
        )  # fmt: skip
    ax.margins(x=0.08)
    low, high = ax.get_xlim()
    ax.set_xlim(low, high + 0.55 * (high - low))  # room for names at the right end
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5), numticks=12))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_title(panel.title)
    ax.set_xlabel(panel.label)
    ax.set_ylabel("mean KL to the original, nats per token (log scale)")
    ax.grid(linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
