"""What a run prints at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from mixprec.report.benchmarks import overview, results_of
from mixprec.report.compare import verdict
from mixprec.report.tables import Cell, Table, top_modules_table, variant_table


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Print variants, top modules and the verdict of a loaded summary; parts without data are left out."""
    moved = (summary.get("benchmarks") or {}).get("differences")
    for title, table in (
        ("Variants", variant_table(summary, brief=True)),
        ("Benchmarks", overview(results_of(summary), moved, brief=True)),
        ("Most important modules", top_modules_table(summary)),
    ):
        if table.rows:
            console.print(rich_table(table, title))
            console.print()
    for sentence in verdict(summary):
        console.print(Text(f"• {sentence}"))


def rich_table(table: Table, title: str | None = None) -> RichTable:
    """A table for the terminal; names are text, never markup."""
    drawn = RichTable(
        title=title, title_justify="left", title_style="bold", box=None, header_style="dim", pad_edge=False
    )
    for index, column in enumerate(table.columns):
        heading = f"{column.group} {column.title}".strip()
        drawn.add_column(
            Text(heading), justify="right" if column.numeric else "left", overflow="fold", no_wrap=index == 0
        )
    for row in table.rows:
        drawn.add_row(*(_text(cell) for cell in row))
    return drawn


def _text(cell: Cell) -> Text:
    text = Text(cell.text, style="bold green" if cell.strong else "")
    return text.append(f" {cell.note}", style="dim not bold") if cell.note else text
