"""Tables of predicted damage as the reader sees them: heatmaps of every format, and the modules that cost most."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mixprec.core import artifacts
from mixprec.models.labels import label_of, parse_address
from mixprec.plan.sensitivity import ALL, NATS, Sensitivity
from mixprec.report.cells import cell_map
from mixprec.report.formatting import integer, percent, significant, words
from mixprec.report.grids import Grids, Measure, Values, arrange
from mixprec.report.heatmap import still_heatmap
from mixprec.report.style import save_figure
from mixprec.report.tables import Cell, Column, Table
from mixprec.report.templates import render_page

#: Modules that are listed.
_TOP = 10


def write_sensitivity(tables: Mapping[str, Sensitivity], out: Path) -> list[Path]:
    """Write sensitivity.html, and sensitivity.png and .svg of the table of all tokens, into a folder.

    Raises UserError where they can't be written.
    """
    page = out / "sensitivity.html"
    artifacts.write_text(page, render_sensitivity(tables))
    return [page, *save_figure(still_heatmap(damage_grids(tables[ALL])), out / "sensitivity")]


def render_sensitivity(tables: Mapping[str, Sensitivity]) -> str:
    """The page as text: a heatmap for each format, the modules that cost most, per target."""
    first = tables[ALL]
    return render_page(
        "sensitivity.html.j2",
        table=first,
        unit="nats of KL per token" if first.scorer in NATS else "the scorer's own unit",
        heatmap=cell_map(damage_grids(first)),
        tops={words(target): table_of_damage(table) for target, table in tables.items()},
        settings={key: value for key, value in first.settings.items() if not isinstance(value, dict)},
    )


def damage_grids(table: Sensitivity) -> Grids:
    """One panel per format, of what was scored; what is outside the blocks stands in the lists alone."""
    listed, columns = [], []
    scores = {address: row for address, row in table.scores.items() if row and parse_address(address)[0]}
    for address in scores:
        layer, kind = parse_address(address)
        listed.append({"layer": layer or 0, "kind": kind, "label": label_of(address)})
    for choice in choices(table):
        values = np.array([row.get(choice, np.nan) for row in scores.values()])
        total = float(np.nansum(values))
        lines = [
            [f"damage {significant(value)}", f"{percent(value / (total or 1))} of all modules'"] for value in values
        ]
        columns.append(Values(choice, f"{significant(total)} in all", values, lines))
    return arrange(Measure("damage"), listed, columns)


def table_of_damage(table: Sensitivity, count: int = _TOP) -> Table:
    """The ``count`` modules with the largest damage in the first format, with that in all formats."""
    names = choices(table)
    scored = (address for address, row in table.scores.items() if row)
    ranked = sorted(scored, key=lambda address: -table.scores[address].get(names[0], 0.0))[:count]
    rows = []
    for number, address in enumerate(ranked, 1):
        scores = [Cell(significant(table.scores[address].get(name))) for name in names]
        rows.append([Cell(integer(number)), Cell(label_of(address)), *scores])
    return Table([Column(""), Column("module", numeric=False), *(Column(name) for name in names)], rows)


def choices(table: Sensitivity) -> list[str]:
    """The formats of a table in its own order."""
    return list(dict.fromkeys(name for row in table.scores.values() for name in row))
