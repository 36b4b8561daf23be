"""An ablation in tables and a picture: what each set of modules costs, and how well every scorer had predicted it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mixprec.report.formatting import ABSENT, integer, interval, percent, scorer, significant, words
from mixprec.report.style import LIGHT, Theme, rc
from mixprec.report.tables import Cell, Column, Table

_TOP = "top10_overlap"


def validity_table(result: Mapping[str, Any], metrics: Sequence[str]) -> Table:
    """One row for each scorer, format, metric and target; the best ranks first."""
    columns = [Column(name, numeric=False) for name in ("scorer", "scores of", "format", "measured", "on")]
    columns += [*_AGREEMENT, Column("Spearman over passages alone"), Column("modules")]
    rows = [
        [
            Cell(scorer(row["scorer"])),
            Cell(words(row["scores_of"])),
            Cell(row["format"]),
            Cell({"kl": "KL"}.get(row["metric"], words(row["metric"]))),
            Cell(words(row["target"])),
            *_agreement(row),
            Cell(interval(row["spearman_ci_passages"]) or ABSENT),
            Cell(integer(row["modules"])),
        ]
        for row in _best_first(result)
        if row["metric"] in metrics
    ]
    return Table(columns, rows)


def ranking_table(result: Mapping[str, Any]) -> Table:
    """How each scorer ranks modules against the measured KL of all tokens."""
    rows = [
        [Cell(scorer(row["scorer"])), Cell(row["format"]), *_agreement(row)]
        for row in _best_first(result)
        if row["metric"] == "kl" and row["target"] == row["scores_of"] == "all"
    ]
    return Table([Column("scorer", numeric=False), Column("format", numeric=False), *_AGREEMENT], rows)


def reading(result: Mapping[str, Any]) -> str:
    """How to read the tables of agreement, for those who see ``result`` alone."""
    scorers = {row["scorer"] for row in result["validity"]}
    text = "Intervals: 95%, over modules and passages. Chance: the overlap of two random lists, on average."
    if "importance" in scorers:
        text += " Importance × weight error is the paper's importance times the relative weight error"
        text += "; importance alone is without it." if "importance_alone" in scorers else "."
    return text


_AGREEMENT = (Column("Spearman"), Column("Kendall"), Column("top-ten overlap"))


def _agreement(row: Mapping[str, Any]) -> list[Cell]:
    """Both rank correlations with their intervals over modules and passages, and the overlap beside chance's."""
    overlap, chance = row[_TOP], row[f"{_TOP}_chance"]
    return [
        Cell(significant(row["spearman"]), interval(row["spearman_ci"])),
        Cell(significant(row["kendall"]), interval(row["kendall_ci"])),
        Cell(ABSENT)
        if overlap is None
        else Cell(f"{overlap} of {row[f'{_TOP}_of']}", f"chance {significant(chance, 2)}"),
    ]


def _order(row: Mapping[str, Any]) -> tuple[bool, str, str, float]:
    """All tokens first, then each behaviour; within them the best first, and last what ranks nothing."""
    rank = -2.0 if row["spearman"] is None else row["spearman"]
    return row["target"] != "all", row["target"], row["format"], -rank


def _best_first(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return sorted(result["validity"], key=_order)


def cells_table(result: Mapping[str, Any], listed: int = 10) -> Table:
    """The ``listed`` cells with the largest KL, with all metrics over all tokens, and KL per behaviour."""
    behaviours = [target for target in result["tokens"] if target != "all"]
    columns = [Column("modules", numeric=False), Column("format", numeric=False), Column("KL")]
    columns += [Column("other most likely token"), Column("NLL increase")]
    columns += [Column(words(name), "KL") for name in behaviours]
    rows = []
    for row in sorted(result["cells"], key=lambda row: -(row["kl"]["all"]["mean"] or 0))[:listed]:
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


def panels_of(result: Mapping[str, Any]) -> dict[str, list[tuple[str, float, float]]]:
    """Scorer -> (cell, predicted, measured KL) of cells that have both above 0; those of more than two cells."""
    measured = {f"{row['name']}, {row['format']}": row["kl"]["all"]["mean"] for row in result["cells"]}
    panels = {
        name: [(cell, score, measured[cell]) for cell, score in scores.items() if score and measured.get(cell)]
        for name, scores in result["scores"].items()
        if name.endswith(", all") and not name.startswith("measured")
    }
    # A log axis has no place for what is not above 0.
    panels = {name: [each for each in cells if min(each[1:]) > 0] for name, cells in panels.items()}
    return {name: cells for name, cells in panels.items() if len(cells) > 2}


def scatter(result: Mapping[str, Any], theme: Theme = LIGHT) -> Figure | None:
    """Predicted against measured KL on log axes, a panel per scorer, a point per module and format; None without."""
    panels = panels_of(result)
    if not panels:
        return None
    columns = min(4, len(panels))
    lines = math.ceil(len(panels) / columns)
    with mpl.rc_context(rc(theme)):
        figure = Figure(figsize=(3.2 * columns + 0.6, 2.8 * lines + 0.8), layout=ConstrainedLayoutEngine(h_pad=0.1))
        for number, (name, points) in enumerate(panels.items(), 1):
            ax = figure.add_subplot(lines, columns, number)
            _, predicted, seen = zip(*points, strict=True)
            ax.scatter(predicted, seen, s=9, color=theme.accent, alpha=0.7, linewidths=0)
            ax.set(xscale="log", yscale="log")
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_locator(LogLocator(numticks=4))
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}"))
                axis.set_minor_formatter(NullFormatter())
            ax.set_title(scorer(name.removesuffix(", all")), loc="left", fontweight="bold", fontsize=9.5)
            ax.grid(color=theme.line)
            ax.set_axisbelow(True)
        figure.supxlabel("predicted damage (log scale)", fontsize=9.5, color=theme.muted)
        figure.supylabel("measured KL, nats per token (log scale)", fontsize=9.5, color=theme.muted)
    return figure
