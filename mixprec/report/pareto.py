"""The curve of size against damage as a picture: plans of a budget, and candidates that all modules get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from mixprec.report.style import LIGHT, Theme, rc


class Mark(NamedTuple):
    """A plan: effective bits, damage, its 95% interval where it was measured, and what it is called."""

    bits: float
    damage: float
    interval: tuple[float, float] | None
    name: str


def pareto_figure(plans: Sequence[Mark], uniform: Sequence[Mark], what: str, theme: Theme = LIGHT) -> Figure:
    """``plans`` as a line, ``uniform`` as named points, on a logarithmic axis of damage; ``what``: its label."""
    with mpl.rc_context(rc(theme)):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        ax = figure.subplots()
        ours = [mark for mark in plans if mark.damage > 0]
        ax.plot(
            [m.bits for m in ours], [m.damage for m in ours], "o-", color=theme.accent, markersize=4.5, label="plans"
        )
        for mark in (*ours, *uniform):
            if mark.interval and min(mark.interval) > 0:
                color = theme.accent if mark in ours else theme.muted
                ax.plot([mark.bits] * 2, mark.interval, "_-", color=color, linewidth=1.2)
        alone = [mark for mark in uniform if mark.damage > 0]
        if alone:
            ax.plot([m.bits for m in alone], [m.damage for m in alone], "s", color=theme.muted, label="one format")
        for mark in alone:
            ax.annotate(
                mark.name, (mark.bits, mark.damage), xytext=(6, 4), textcoords="offset points", color=theme.muted
            )
        ax.margins(x=0.1)  # room for names at the right end
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel("effective bits per weight")
        ax.set_ylabel(what)
        ax.grid(linewidth=0.7)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
    return figure
