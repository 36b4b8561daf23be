"""What a kind of problem gives the narrator: the question, and what can truly be said on the way to its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Test(NamedTuple):
    """A concrete case and what comes out of it; ``holds``: it bears out what it tests."""

    case: str
    outcome: str
    holds: bool = True


class Turn(NamedTuple):
    """A wrong step, and what is wrong with it."""

    step: str
    wrong: str


@dataclass(frozen=True)
class Stage:
    """One stretch of the way: what is known (``facts``, ``given``), then ``steps``.

    Perhaps a wrong ``turn`` in between, ``tests`` behind them, and ``doubts`` about them. All are templates of clauses
    or, ending with a mark, of sentences.
    """

    steps: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    turn: Turn | None = None
    tests: tuple[Test, ...] = ()
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """A question with its answer. ``task`` is a verb phrase, ``topic`` a noun phrase, ``ways`` other ways to do it."""

    prompt: str
    task: str
    topic: str
    stages: tuple[Stage, ...]
    answer: str
    ways: tuple[str, ...] = ()
    opening: tuple[str, ...] = ()
    #: How much a trace about it doubts: 1 as usual.
    doubtful: float = 1.0
