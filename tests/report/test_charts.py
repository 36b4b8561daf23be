from __future__ import annotations

from typing import Any

import pytest

from mixprec.report.charts import variants_figure
from mixprec.report.style import render


def names(ax: Any) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


def test_variants_lie_on_log_axes_with_their_intervals(summary: dict[str, Any]) -> None:
    figure = variants_figure(summary)
    assert figure is not None
    whole, few = figure.axes
    assert names(whole) == ["w3", "w3_last_mlp", "w3_random"] and names(few) == [
        "only_last_up",
        "only_last_k",
    ]
    assert whole.get_xscale() == "log"
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in whole.lines]
    for row, name in enumerate(names(whole)):
        variant = summary["variants"][name]
        assert (variant["kl_mean_ci"], [row, row]) in lines
        assert ([variant["kl_mean"]], [row]) in lines
    low, high = whole.get_xlim()
    assert low < 1.24 and high > 1.81
    assert "3.25" in [text.get_text() for text in whole.texts]
    assert "KL is 0 for bf16" in figure.get_supxlabel()


def test_unmeasured_variants_are_named(summary: dict[str, Any]) -> None:
    summary["variants"]["w3_random"]["kl_mean"] = None
    figure = variants_figure(summary)
    assert figure is not None and "not measured: w3_random" in figure.get_supxlabel()


def test_nothing_measured_nothing_drawn(summary: dict[str, Any]) -> None:
    for variant in summary["variants"].values():
        variant |= {"kl_mean": None, "behaviours": {}}
    assert variants_figure(summary) is variants_figure({}) is None


@pytest.mark.filterwarnings("error")
def test_hostile_names_and_wide_intervals_draw(summary: dict[str, Any], make_variant: Any) -> None:
    hostile = make_variant("", 3.3, 205, 1e-3, 9, spread=1.0)  # the interval reaches 0
    summary["variants"]["$\\frac{x$ <script>--> & \n" + "n" * 80] = hostile
    figures = [variants_figure(summary), variants_figure(summary)]
    first, second = (render(figure, "svg") for figure in figures if figure is not None)
    assert first == second and b"<script>" not in first


def test_one_variant_alone_draws(summary: dict[str, Any]) -> None:
    summary["variants"] = {"w3": summary["variants"]["w3"] | {"kl_mean_ci": None, "behaviours": {}}}
    figure = variants_figure(summary)
    assert figure is not None and len(figure.axes) == 1
