"""The page of an importance shift, and its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixprec.core import artifacts
from mixprec.importance.shift import Kind
from mixprec.report.cells import cell_map
from mixprec.report.grids import shift_grids
from mixprec.report.heatmap import still_heatmap
from mixprec.report.rankings import agreement_table, between_table, movers_table
from mixprec.report.style import save_figure
from mixprec.report.templates import render_page


def write_shift(shift: Mapping[str, Any], kind: Kind, out: Path) -> list[Path]:
    """Write shift.json, shift.html, shift.png and shift.svg into a folder; ``kind`` is the part that is drawn.

    Raises UserError where they can't be written.
    """
    data, page = out / "shift.json", out / "shift.html"
    artifacts.write_json(data, shift, seal=False)  # nothing reads it back
    artifacts.write_text(page, render_shift(shift, kind))
    return [data, page, *save_figure(still_heatmap(shift_grids(shift, kind)), out / "shift")]


def render_shift(shift: Mapping[str, Any], kind: Kind) -> str:
    """The page as text: heatmaps, the modules that moved most, and how alike the rankings are."""
    return render_page(
        "shift.html.j2",
        shift=shift,
        kind=kind,
        heatmap=cell_map(shift_grids(shift, kind)),
        movers=movers_table(shift, kind),
        agreement=agreement_table(shift),
        between=between_table(shift),
    )
