"""What all results share: tables in the terminal and in a notebook, rows for a data frame."""

from __future__ import annotations

import importlib
import io
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import escape
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from mixprec.core.errors import UserError
from mixprec.core.escaping import visible
from mixprec.report.render import to_html
from mixprec.report.tables import Table
from mixprec.report.terminal import rich_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Result(ABC):
    """Prints as its tables, in a notebook too; ``to_pandas`` has all of its rows."""

    @abstractmethod
    def tables(self) -> Mapping[str, Table]:
        """Title -> table, in reading order."""

    @abstractmethod
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """One mapping per row of the data frame, numbers as numbers."""

    def notes(self) -> Sequence[str]:
        """Sentences under the tables."""
        return ()

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, force_terminal=False).print(self)
        return text.getvalue().rstrip("\n")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for number, (title, table) in enumerate(self.tables().items()):
            if number:
                yield Text()
            yield Text(visible(title), style="bold")
            yield rich_table(table)
        for note in self.notes():
            yield Text(visible(note))

    def _repr_html_(self) -> str:
        tables = [f"<h4>{escape(title)}</h4>\n{to_html(table)}" for title, table in self.tables().items()]
        return "\n".join([*tables, *(f"<p>{escape(note)}</p>" for note in self.notes())])

    def to_pandas(self) -> Any:
        """The rows as a pandas DataFrame. Raises UserError where pandas is not installed."""
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            raise UserError("to_pandas: pandas is not installed; run: pip install 'mixprec[pandas]'") from None
        return pandas.DataFrame(list(self.rows()))


@dataclass(frozen=True, repr=False)
class View(Result):
    """A part of a result: one table with a title."""

    title: str
    table: Table
    data: tuple[Mapping[str, Any], ...]

    def tables(self) -> dict[str, Table]:
        return {self.title: self.table}

    def rows(self) -> tuple[Mapping[str, Any], ...]:
        return self.data

    def __repr__(self) -> str:
        return f"<{self.title}: {len(self.data)} rows>"


@dataclass(frozen=True)
class Picture:
    """A drawing that a notebook shows; ``figure`` is matplotlib's."""

    figure: Figure

    def save(self, stem: str | Path) -> list[Path]:
        """Write ``stem``.png and ``stem``.svg; gives their paths. Raises UserError where they can't be written."""
        from mixprec.report.style import save_figure  # with matplotlib, which tables don't need

        return save_figure(self.figure, Path(stem))

    def _repr_png_(self) -> bytes:
        from mixprec.report.style import render  # as above

        return render(self.figure, "png", dpi=100)
