"""How far the work is, and what it has to say meanwhile.

From Python mixprec is quiet: a function that works for long takes a ``progress`` callback, which gets a ``Step`` each
time that something is done; notices go to the logger ``mixprec``. The command line calls ``speak``: then every step
has one look, a bar with what, how far, time spent and time left, and bars and notices go to standard error.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from mixprec.core import events, processes
from mixprec.core.escaping import visible


class PlainConsole(Console):
    """A console for which text is text: no markup, no emoji codes, no control characters. Styles are arguments."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


class _Notices(PlainConsole):
    """Standard error after ``speak``; before it, notices go to the logger."""

    def print(self, *objects: Any, **options: Any) -> None:
        if objects and all(isinstance(each, str) for each in objects):  # not the bars, which print themselves
            events.tell("notice", text=" ".join(objects))
        if self.quiet and processes.is_main():
            _log.info(" ".join(map(str, objects)))
        super().print(*objects, **options)


_log = logging.getLogger("mixprec")
console = _Notices(stderr=True, quiet=True)


def speak() -> None:
    """Show bars and notices on standard error from now on; of several processes the main one does."""
    console.quiet = not processes.is_main()


class Step(NamedTuple):
    """How far a piece of work is: ``done`` of ``total`` units."""

    what: str
    done: int
    total: int
    unit: str

    def __str__(self) -> str:
        return f"{self.what}: {self.done} of {self.total} {self.unit}"


#: Called with every step of a piece of work, the first one with nothing done.
OnStep = Callable[[Step], None]
_listener: ContextVar[OnStep | None] = ContextVar("mixprec_progress", default=None)


@contextmanager
def telling(listener: OnStep | None) -> Iterator[None]:
    """Let ``listener`` hear of all steps inside, in the place of bars; None: whoever hears of them already does."""
    if listener is None:
        yield
        return
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def _counting(listener: OnStep, what: str, total: int, unit: str, done: int = 0) -> Callable[[int], None]:
    """What moves a count on and tells ``listener``."""

    def advance(more: int) -> None:
        nonlocal done
        done += more
        listener(Step(what, done, total, unit))

    advance(0)
    return advance


@contextmanager
def bar(description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A bar of ``total`` units; yields the function that moves it on: ``advance(n)``.

    On a terminal that can't redraw (a log file) one line is printed at the end. The run's log hears of it too.
    """
    steps = events.Steps(description, total, unit)
    with _bar(description, total, unit) as advance:

        def both(more: int) -> None:
            steps.advance(more)
            advance(more)

        yield both


@contextmanager
def _bar(description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    if (listener := _listener.get()) is not None:
        yield _counting(listener, description, total, unit)
        return
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


#: Longest description that leaves room for the numbers on a line of 80.
_NAME = 20


@dataclass
class Generating:
    """How far the generation of ``left`` outputs of at most ``limit`` tokens is, in tokens.

    ``known``: lengths of outputs of the same kind that are there already. ``clock`` tells seconds. ``on_output`` is
    called with 1 for every output.
    """

    left: int
    limit: int
    known: Sequence[int] = ()
    clock: Callable[[], float] = time.monotonic
    on_output: Callable[[int], None] = lambda _: None
    written: int = 0
    finished: list[int] = field(default_factory=list)
    counted: bool = True

    def __post_init__(self) -> None:
        self._start = self.clock()

    def tokens(self, count: int) -> None:
        """So many new tokens, of outputs that may not be finished."""
        self.written += count

    def output(self, tokens: int | None) -> None:
        """One output is finished; None where nobody counted its tokens."""
        self.left -= 1
        self.counted = self.counted and tokens is not None
        self.finished.append(tokens or 0)
        self.written = max(self.written, sum(self.finished))  # where tokens are told only with their output
        self.on_output(1)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return self.clock() - self._start

    @property
    def speed(self) -> float | None:
        """Tokens per second, of all outputs together; None before there are any, and where nobody counts them."""
        return self.written / self.seconds if self.counted and self.written and self.seconds else None

    @property
    def seconds_left(self) -> float | None:
        """By the length that outputs have had so far, or else may have at most; None where nothing tells."""
        if self.speed is None:
            return self.left * self.seconds / len(self.finished) if self.finished else None
        # Short outputs end first, so the mean of those that ended is too short. All tokens over those that ended is
        # the mean length where outputs end at a steady rate; what is under way can't be longer than the limit.
        ended = len(self.known) + len(self.finished)
        typical = (sum(self.known) + self.written) / ended if ended else self.limit
        most = self.left * self.limit - (self.written - sum(self.finished))
        return max(0, min(self.left * typical, most)) / self.speed


class _Told(ProgressColumn):
    """A column that tells something of a Generating."""

    def __init__(self, tell: Callable[[], str], style: str) -> None:
        super().__init__(Column(no_wrap=True))
        self._tell, self._style = tell, style

    def render(self, task: Task) -> Text:
        return Text(self._tell(), style=self._style)


def _speed(seen: Generating) -> str:
    speed = seen.speed
    if speed is None:
        return "-- tokens/s"
    return f"{speed / 1000:.1f}k tokens/s" if speed >= 10_000 else f"{speed:.{0 if speed >= 100 else 1}f} tokens/s"


def _left(seen: Generating) -> str:
    left = seen.seconds_left
    # Before any output ended, nothing but the limit tells how long they are.
    most = "" if seen.known or seen.finished else "≤ "
    return "-:--:--" if left is None else most + str(timedelta(seconds=round(left)))


@contextmanager
def generating(description: str, total: int, limit: int, known: Sequence[int | None] = ()) -> Iterator[Generating]:
    """A bar of ``total`` outputs that shows tokens per second and, by them, the time left.

    ``limit``: most tokens of an output; ``known``: lengths of the outputs that are there, None where nobody counted.
    """
    seen = Generating(total - len(known), limit, [count for count in known if count is not None])
    steps = events.Steps(description, total, "outputs", len(known))
    with _generating(seen, description, total, known):
        shown = seen.on_output

        def both(more: int) -> None:
            steps.advance(more)
            shown(more)

        seen.on_output = both
        yield seen


@contextmanager
def _generating(seen: Generating, description: str, total: int, known: Sequence[int | None]) -> Iterator[None]:
    if (listener := _listener.get()) is not None:
        seen.on_output = _counting(listener, description, total, "outputs", len(known))
        yield
        return
    description = visible(description)
    name = description if len(description) <= _NAME else description[: _NAME - 1] + "…"
    with Progress(
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("outputs"),
        _Told(lambda: _speed(seen), "progress.data.speed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        _Told(lambda: _left(seen), "progress.remaining"),
        console=console,
        transient=console.is_terminal,
        disable=console.quiet,
        expand=True,
    ) as progress:
        task = progress.add_task(name, total=total, completed=len(known))
        seen.on_output = lambda done: progress.advance(task, done)
        yield
