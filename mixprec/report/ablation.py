"""The page of an ablation: what each set of modules costs, and how well every scorer had predicted it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mixprec import artifacts
from mixprec.report.formatting import ABSENT, integer, interval, percent, significant, words
from mixprec.report.html import data_uri, render_page
from mixprec.report.style import LIGHT, Theme, rc, render, save_figure
from mixprec.report.tables import Cell, Column, Table

#: Cells that are listed, those with the largest KL.
_LISTED = 40
_TOP = "top10_overlap"


def write_ablation(result: Mapping[str, Any], out: Path) -> list[Path]:
    """Write ablation.html and, where scores were judged, ablation.png and .svg into a folder.

    Raises UserError where they can't be written.
    """
    page, figure = out / "ablation.html", scatter(result)
    artifacts.write_text(page, render_ablation(result))
    return [page, *(save_figure(figure, out / "ablation") if figure else [])]


def render_ablation(result: Mapping[str, Any]) -> str:
    """The page as text: scatter plot, the rankings' validity, the cells."""
    figure = scatter(result)
    return render_page(
        "ablation.html.j2",
        result=result,
        heatmap=None,
        figure=data_uri(render(figure, "png", dpi=120), "image/png") if figure else None,
        validity=validity_table(result, ("kl",)),
        others=validity_table(result, ("disagreement", "nll_increase")),
        cells=cells_table(result),
        tokens={words(target): integer(round(count)) for target, count in result["tokens"].items()},
    )


def validity_table(result: Mapping[str, Any], metrics: Sequence[str]) -> Table:
    """One row for each scorer, format, metric and target; the best ranks first."""
    columns = [Column(name, numeric=False) for name in ("scorer", "scores of", "format", "measured", "on")]
    columns += [Column("Spearman"), Column("Kendall"), Column("top-ten overlap"), Column("modules")]
    rows = []
    for row in _best_first(result):
        if row["metric"] not in metrics:
            continue
        rows.append(
            [
                Cell(words(row["scorer"])),
                Cell(words(row["scores_of"])),
                Cell(row["format"]),
                Cell({"kl": "KL"}.get(row["metric"], words(row["metric"]))),
                Cell(words(row["target"])),
                Cell(significant(row["spearman"]), interval(row["spearman_ci"])),
                Cell(significant(row["kendall"]), interval(row["kendall_ci"])),
                Cell(_overlap(row)),
                Cell(integer(row["modules"])),
            ]
        )
    return Table(columns, rows)


def ranking_table(result: Mapping[str, Any]) -> Table:
    """For the terminal: how each scorer ranks modules against the measured KL of all tokens."""
    columns = [Column("scorer", numeric=False), Column("format", numeric=False)]
    columns += [Column("Spearman"), Column("Kendall"), Column("top-ten overlap")]
    rows = [
        [
            Cell(words(row["scorer"])),
            Cell(row["format"]),
            Cell(significant(row["spearman"]), interval(row["spearman_ci"])),
            Cell(significant(row["kendall"])),
            Cell(_overlap(row)),
        ]
        for row in _best_first(result)
        if row["metric"] == "kl" and row["target"] == row["scores_of"] == "all"
    ]
    return Table(columns, rows)


def _best_first(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return sorted(result["validity"], key=lambda row: (row["target"], row["format"], -(row["spearman"] or -1)))


def _overlap(row: Mapping[str, Any]) -> str:
    return ABSENT if row[_TOP] is None else f"{integer(row[_TOP])} of 10"


def cells_table(result: Mapping[str, Any]) -> Table:
    """The cells with the largest KL, with all metrics over all tokens, and KL per behaviour."""
    behaviours = [target for target in result["tokens"] if target != "all"]
    columns = [Column("modules", numeric=False), Column("format", numeric=False), Column("KL")]
    columns += [Column("other most likely token"), Column("NLL increase")]
    columns += [Column(words(name), "KL") for name in behaviours]
    rows = []
    for row in sorted(result["cells"], key=lambda row: -(row["kl"]["all"]["mean"] or 0))[:_LISTED]:
        kl = row["kl"]["all"]
        rows.append(
            [
                Cell(row["name"]),
                Cell(row["format"]),
                Cell(significant(kl["mean"]), interval(kl["ci"])),
                Cell(percent(row["disagreement"]["all"]["mean"])),
                Cell(significant(row["nll_increase"]["all"]["mean"])),
                *(Cell(significant(row["kl"][name]["mean"])) for name in behaviours),
            ]
        )
    return Table(columns, rows)


def scatter(result: Mapping[str, Any], theme: Theme = LIGHT) -> Figure | None:
    """Predicted against measured KL on log axes, a panel per scorer, a point per module and format; None without."""
    measured = {f"{row['name']}, {row['format']}": row["kl"]["all"]["mean"] for row in result["cells"]}
    panels = {
        name: [(score, measured[cell]) for cell, score in scores.items() if score and measured[cell]]
        for name, scores in result["scores"].items()
        if name.endswith(", all") and not name.startswith("measured")
    }
    panels = {name: points for name, points in panels.items() if len(points) > 2}
    if not panels:
        return None
    columns = min(4, len(panels))
    lines = math.ceil(len(panels) / columns)
    with mpl.rc_context(rc(theme)):
        figure = Figure(figsize=(3.2 * columns + 0.6, 2.8 * lines + 0.8), layout=ConstrainedLayoutEngine(h_pad=0.1))
        for number, (name, points) in enumerate(panels.items(), 1):
            ax = figure.add_subplot(lines, columns, number)
            predicted, seen = zip(*points, strict=True)
            ax.scatter(predicted, seen, s=9, color=theme.accent, alpha=0.7, linewidths=0)
            ax.set(xscale="log", yscale="log")
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_locator(LogLocator(numticks=4))
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}"))
                axis.set_minor_formatter(NullFormatter())
            ax.set_title(words(name.removesuffix(", all")), loc="left", fontweight="bold", fontsize=9.5)
            ax.grid(color=theme.line)
            ax.set_axisbelow(True)
        figure.supxlabel("predicted damage (log scale)", fontsize=9.5, color=theme.muted)
        figure.supylabel("measured KL, nats per token (log scale)", fontsize=9.5, color=theme.muted)
    return figure
