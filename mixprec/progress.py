"""One look for every progress bar: what, how far, time spent, time left. Goes to standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True)


@contextmanager
def bar(description: str, total: float, unit: str = "") -> Iterator[Progress]:
    """Yield a rich Progress with one task, id 0: ``progress.advance(0, n)`` as work gets done.

    ``total`` is in ``unit``; on a terminal that can't redraw (a log file) one line is printed at the end.
    """
    with Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=console.is_terminal,
    ) as progress:
        progress.add_task(description, total=total)  # rich numbers tasks from 0
        yield progress
