"""The losses of a distillation over its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from mixprec.report.style import LIGHT, rc


def losses_figure(course: Mapping[str, Any]) -> Figure:
    """Training and validation loss by step; ``course``: as distill.course.Course tells it."""
    with mpl.rc_context(rc(LIGHT)):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        ax = figure.add_subplot()
        if course["training"]:
            ax.plot(
                *zip(*course["training"], strict=True), color=LIGHT.muted, linewidth=0.9, label="training, each step"
            )
        steps, losses = zip(*course["validation"], strict=True)
        ax.plot(steps, losses, color=LIGHT.accent, marker="o", markersize=4, label="validation")
        ax.axvline(course["kept_step"], color=LIGHT.line, zorder=0)
        ax.set_xlabel("step; the line marks what was kept")
        ax.set_ylabel(f"{course['objective']}, nats per token")
        ax.grid(axis="y")
        ax.legend(frameon=False)
    return figure
