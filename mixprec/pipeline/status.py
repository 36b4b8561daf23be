"""How far a run is, by its log and its lock: for who looks on from another terminal or machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mixprec.core import events, locks
from mixprec.core.errors import UserError


@dataclass(frozen=True)
class Status:
    """``state``: running, done, stopped, failed, or killed. ``who`` is at work; ``quiet``: seconds since the last line.

    ``done``: stage -> seconds, None for one that was kept; ``running``: the stage that began last, or None; ``beside``:
    others, on a cluster; ``step``: the last line about a piece of work; ``left``: stages that are to come;
    ``seconds_left``: None where nothing tells.
    """

    state: str
    who: str | None
    quiet: float
    done: dict[str, float | None] = field(default_factory=dict)
    running: str | None = None
    step: dict[str, Any] | None = None
    beside: Sequence[str] = ()
    left: Sequence[str] = ()
    seconds_left: float | None = None
    why: str = ""


def status(folder: Path, now: datetime | None = None) -> Status:
    """What is known of the last run in ``folder``.

    Raises UserError where none was logged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a run")
    rows = events.read(folder)
    begins = [number for number, row in enumerate(rows) if row["event"] == "begin"]
    if not begins:
        raise UserError(f"{folder}: holds no {events.NAME}; 'mixprec run' writes one when it starts")
    rows, who = rows[begins[-1] :], locks.at_work(folder)
    done, open_stages = _stages(rows)
    beside, running, begun = open_stages[:-1], None, ""
    if open_stages:
        running, begun = open_stages[-1]
    last = rows[-1]
    ended = last["event"] == "end"
    state = str(last.get("how")) if ended and who is None else "running" if who is not None else "killed"
    now = now or datetime.now(UTC)
    steps = [row for row in rows if row["event"] == "step"]
    step = steps[-1] if steps and running is not None and steps[-1]["time"] >= begun else None
    expected = _expected(rows[0])
    working = dict(open_stages)
    left = [name for name in expected if name not in done and name not in working] if state != "done" else []
    spent = _seconds(begun, now) if running is not None else 0.0
    seconds = _left(expected, done, running, spent, left, step) if state == "running" else None
    why = str(last.get("why", "")) if ended else ""
    others = [name for name, _ in beside]
    return Status(state, who, _seconds(last["time"], now), done, running, step, others, left, seconds, why)


def _stages(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, float | None], list[tuple[str, str]]]:
    """Stages that are done, and those that are not yet, with the time when each began, the last one last."""
    done: dict[str, float | None] = {}
    working: dict[str, str] = {}
    for row in rows:
        if row["event"] != "stage" or not isinstance(row.get("name"), str):
            continue
        if row.get("state") == "begun":
            working.pop(row["name"], None)
            working[row["name"]] = row["time"]
        else:  # one that was made and is looked at again has its time already
            done[row["name"]] = _number(row.get("seconds")) if row.get("state") == "made" else done.get(row["name"])
            working.pop(row["name"], None)
    return done, list(working.items())


def _expected(begin: dict[str, Any]) -> dict[str, float | None]:
    listed = begin.get("stages")
    pairs = [each for each in listed if isinstance(each, list) and len(each) == 2] if isinstance(listed, list) else []
    return {str(name): _number(each) for name, each in pairs}


def _number(value: Any) -> float | None:
    """Seconds, or a count; None for what is neither."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15
    return float(value) if known else None


def _seconds(since: str, now: datetime) -> float:
    try:
        return max((now - datetime.fromisoformat(since)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return 0.0


def _left(
    expected: dict[str, float | None],
    done: dict[str, float | None],
    running: str | None,
    spent: float,
    left: Sequence[str],
    step: dict[str, Any] | None,
) -> float | None:
    """The estimates of what is left, times what stages have taken here for each second of theirs; of the running one
    by its steps, where it tells any."""
    known = [(seconds, expected.get(name)) for name, seconds in done.items()]
    taken = [(seconds, guess) for seconds, guess in known if seconds is not None and guess]
    pace = sum(seconds for seconds, _ in taken) / sum(guess for _, guess in taken) if taken else 1.0
    guesses = [expected[name] for name in left]
    if any(guess is None for guess in guesses):
        return None
    rest = pace * sum(guess for guess in guesses if guess is not None)
    if running is None:
        return rest
    steps, total = (_number((step or {}).get(key)) for key in ("done", "total"))
    share = min(steps / total, 1.0) if steps and total else 0.0
    if share:
        return rest + spent * (1 - share) / share
    guess = expected.get(running)
    return rest + max(pace * guess - spent, 0.0) if guess is not None else None if running in expected else rest
