"""The page of an ablation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixprec.core import artifacts
from mixprec.report.formatting import integer, words
from mixprec.report.pagecharts import scatter_points
from mixprec.report.style import save_figure
from mixprec.report.templates import render_page
from mixprec.report.validity import cells_table, reading, scatter, validity_table


def write_ablation(result: Mapping[str, Any], out: Path) -> list[Path]:
    """Write ablation.html and, where scores were judged, ablation.png and .svg into a folder.

    Raises UserError where they can't be written.
    """
    page, figure = out / "ablation.html", scatter(result)
    artifacts.write_text(page, render_ablation(result))
    return [page, *(save_figure(figure, out / "ablation") if figure else [])]


def render_ablation(result: Mapping[str, Any]) -> str:
    """The page as text: scatter plot, the rankings' validity, the cells."""
    return render_page(
        "ablation.html.j2",
        result=result,
        plots=scatter_points(result),
        reading=reading(result),
        validity=validity_table(result, ("kl",)),
        others=validity_table(result, ("disagreement", "nll_increase")),
        cells=cells_table(result, listed=40),
        tokens={words(target): integer(round(count)) for target, count in result["tokens"].items()},
    )
