"""What happens in a run, as JSON lines in its folder, for whoever watches from another terminal or machine.

It is a log and no artifact: the one file of a run with times in it, which nothing is made from. A line that can't be
written stops no work.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mixprec.core import parsing, processes, publish
from mixprec.core.version import VERSION

NAME = "events.jsonl"
#: Seconds between two lines about one piece of work.
_PAUSE = 2.0

_log: ContextVar[Path | None] = ContextVar("mixprec_events", default=None)
_begun: ContextVar[str | None] = ContextVar("mixprec_begun", default=None)


@contextmanager
def logged(folder: Path, **about: Any) -> Iterator[None]:
    """Write what happens inside to ``folder``; ``about``: what the first line says of the run.

    Raises UserError where the log is a link to elsewhere.
    """
    if not processes.is_main():
        yield
        return
    publish.refuse_links(folder / NAME)
    token = _log.set(folder / NAME)
    try:
        tell("begin", process=os.getpid(), host=platform.node(), mixprec=VERSION, **about)
        yield
        tell("end", how="done")
    except KeyboardInterrupt:
        tell("end", how="stopped")
        raise
    except BaseException as problem:
        tell("end", how="failed", why=str(problem))
        raise
    finally:
        _log.reset(token)


def tell(event: str, **said: Any) -> None:
    """One line, where a log is written."""
    path = _log.get()
    if path is None:
        return
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    with suppress(OSError), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": now, "event": event, **said}, ensure_ascii=False) + "\n")


class Steps:
    """Tells how far a piece of work is, every few seconds and at its end."""

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        self._about, self._total, self._done, self._last = {"what": what, "unit": unit}, total, done, 0.0
        self._path = _log.get()

    def advance(self, more: int) -> None:
        """So many units are done."""
        self._done += more
        now = time.monotonic()
        if self._path is None or (now - self._last < _PAUSE and self._done < self._total):
            return
        self._last, token = now, _log.set(self._path)  # other threads don't inherit it
        tell("step", **self._about, done=self._done, total=self._total)
        _log.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Tell when a stage begins, and how long it took."""
    start = time.monotonic()
    _begun.set(name)
    tell("stage", name=name, state="begun")
    yield
    tell("stage", name=name, state="made", seconds=round(time.monotonic() - start, 3))


def begun() -> str | None:
    """The stage that began last here, for who has to say where something went wrong."""
    return _begun.get()


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, oldest first; what is half-written or no event is passed over."""
    path, found = folder / NAME, []
    with suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(parsing.Malformed):
                row = parsing.parse_json(line)
                if isinstance(row, dict) and isinstance(row.get("event"), str) and isinstance(row.get("time"), str):
                    found.append(row)
    return found
