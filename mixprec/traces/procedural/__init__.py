"""Reasoning traces by a procedure: problems of our own, told as a reasoning model tells them, labelled by construction.

For tests, for the offline annotator (``traces.learned``) and for quick runs. The answers are right; what stands before
a ``backtracking`` section may be wrong on purpose. The same seed gives the same traces.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from mixprec.core.errors import UserError
from mixprec.traces import store
from mixprec.traces.procedural import numbers, reasons, schedules
from mixprec.traces.procedural.narrate import Narrator, Section, paragraphs
from mixprec.traces.procedural.problem import Problem
from mixprec.traces.store import Trace

#: Kind -> what makes a problem of it.
KINDS: dict[str, Callable[[random.Random], Problem]] = {
    "arithmetic": numbers.arithmetic,
    "counting": numbers.counting,
    "equations": numbers.equations,
    "progression": numbers.progression,
    "remainders": numbers.remainders,
    "timetable": schedules.timetable,
    "journey": schedules.journey,
    "ordering": schedules.ordering,
    "syllogism": reasons.syllogism,
    "facts": reasons.facts,
    "unknown": reasons.unknown,
}
_INSTRUCTIONS = (
    "Think it through, then give the answer.",
    "Reason step by step and end with the answer.",
    "Work it out, then answer in one line.",
)


class Made(NamedTuple):
    """An annotated trace, its sections in order, and the right answer."""

    trace: Trace
    sections: list[Section]
    gold: str


def traces(count: int, seed: int = 0, kinds: Sequence[str] = tuple(KINDS)) -> Iterator[Made]:
    """So many annotated traces, of the kinds in turn.

    Each depends on its number, its kind and the seed alone, so a longer list begins alike. Raises UserError for a kind
    that isn't there, and for none.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"kinds: {kind!r} is unknown, known are {', '.join(KINDS)}")
    if not kinds:
        raise UserError(f"kinds: none given, known are {', '.join(KINDS)}")
    return (_one(number, seed, kinds[number % len(kinds)]) for number in range(count))


def row(made: Made) -> dict[str, str]:
    """A line of a file of traces, as the bundled ones have it."""
    trace = made.trace
    return {
        "dataset": trace.dataset,
        "id": store.local_id(trace.id, trace.dataset),
        "prompt": trace.prompt,
        "output": trace.output,
        "annotated": trace.annotated or "",
        "gold": made.gold,
    }


def _one(number: int, seed: int, kind: str) -> Made:
    chance = random.Random(f"{seed}:{kind}:{number}")
    problem = KINDS[kind](chance)
    sections = Narrator(problem, chance).sections()
    plain, annotated = paragraphs(sections)
    prompt = f"{problem.prompt}\n\n{chance.choice(_INSTRUCTIONS)}\n<think>\n"
    output = f"{plain}\n</think>\n\nThe answer is **{problem.answer}**."
    identifier = store.full_id(f"{seed}-{number}", kind)
    return Made(Trace(identifier, kind, prompt, output, annotated), sections, problem.answer)
