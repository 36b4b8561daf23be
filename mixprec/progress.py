"""One look for every progress bar: what, how far, time spent, time left. Goes to standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from mixprec import processes
from mixprec.escaping import visible


class PlainConsole(Console):
    """A console for which text is text: no markup, no emoji codes, no control characters. Styles are arguments."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


#: Of several processes the main one speaks.
console = PlainConsole(stderr=True, quiet=not processes.is_main())


@contextmanager
def bar(description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A bar of ``total`` units; yields the function that moves it on: ``advance(n)``.

    On a terminal that can't redraw (a log file) one line is printed at the end.
    """
    with Progress(
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit, markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=console.is_terminal,
        disable=console.quiet,
    ) as progress:
        task = progress.add_task(visible(description), total=total)
        yield lambda done: progress.advance(task, done)
