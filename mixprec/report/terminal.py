"""What a run prints at its end."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, ConsoleRenderable, JustifyMethod, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from mixprec.core.escaping import visible
from mixprec.report.tables import Cell, Table

#: Blanks between two columns.
_GAP = 2


def print_ablation(result: Mapping[str, Any], console: Console) -> None:
    """Print what sets of modules cost and how well each scorer had predicted it, of a loaded ablation.json."""
    from mixprec.report.validity import cells_table, ranking_table, reading  # which draw too, with matplotlib

    console.print(rich_table(cells_table(result), "Largest damage"))
    if result["validity"]:
        console.print()
        console.print(rich_table(ranking_table(result), "Predicted against measured KL"))
        console.print(Text(reading(result)))


def rich_table(table: Table, title: str | None = None) -> ConsoleRenderable:
    """A table for the terminal, in parts below each other where it is wider."""
    return _Fitted(table, title)


class _Fitted:
    """Fits a table into the terminal that it is printed in; names are text, never markup.

    One that is wider than the terminal comes in parts below each other, each with the rows' names in front.
    """

    def __init__(self, table: Table, title: str | None) -> None:
        self.table, self.title = table, title

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        headings = [visible(f"{column.group} {column.title}".strip()) for column in self.table.columns]
        cells = [max((_text(row[i]).cell_len for row in self.table.rows), default=0) for i in range(len(headings))]
        widths = [max(cell_len(text), cell) for text, cell in zip(headings, cells, strict=True)]
        parts = [list(range(len(headings)))]
        if sum(widths) + _GAP * (len(widths) - 1) > options.max_width:
            least = [
                max(cell, *map(cell_len, text.split() or [""])) for text, cell in zip(headings, cells, strict=True)
            ]
            headings = [textwrap.fill(text, size) if size else text for text, size in zip(headings, least, strict=True)]
            parts = _parts(self.table, least, options.max_width)
        for number, part in enumerate(parts):
            if number:
                yield Text()
            yield _drawn(self.table, part, headings, None if number else self.title)


def _parts(table: Table, widths: Sequence[int], room: int) -> list[list[int]]:
    """The columns of each part: the names in front, and as many others as fit; at least one."""
    names = list(itertools.takewhile(lambda index: not table.columns[index].numeric, range(len(widths))))
    parts = [list(names)]
    for index in range(len(names), len(widths)):
        if len(parts[-1]) > len(names) and sum(widths[i] + _GAP for i in [*parts[-1], index]) - _GAP > room:
            parts.append(list(names))
        parts[-1].append(index)
    return parts


def _drawn(table: Table, part: Sequence[int], headings: Sequence[str], title: str | None) -> RichTable:
    drawn = RichTable(
        title=title, title_justify="left", title_style="bold", box=None, header_style="dim", pad_edge=False
    )
    for index in part:
        justify: JustifyMethod = "right" if table.columns[index].numeric else "left"
        drawn.add_column(Text(headings[index]), justify=justify, overflow="fold", no_wrap=index == 0)
    for row in table.rows:
        drawn.add_row(*(_text(row[index]) for index in part))
    return drawn


def _text(cell: Cell) -> Text:
    text = Text(visible(cell.text), style="bold green" if cell.strong else "")
    return text.append(f" {visible(cell.note)}", style="dim not bold") if cell.note else text
