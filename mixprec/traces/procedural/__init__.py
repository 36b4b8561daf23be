"""Reasoning traces by a procedure: problems of our own, told as a reasoning model tells them, labelled by construction.

For tests, for the offline annotator (``traces.learned``) and for quick runs. The answers are right; what stands before
a ``backtracking`` section may be wrong on purpose. The same seed gives the same traces.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from mixprec.core.errors import UserError
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


def traces(count: int, seed: int = 0, kinds: Sequence[str] = tuple(KINDS)) -> list[Trace]:
    """So many annotated traces, of the kinds in turn.

    Raises UserError for a kind that isn't there, and for none.
    """
    return [trace for trace, _ in labelled(count, seed, kinds)]


def labelled(count: int, seed: int = 0, kinds: Sequence[str] = tuple(KINDS)) -> Iterator[tuple[Trace, list[Section]]]:
    """The traces with their sections. Each depends on its number and the seed alone, so a longer list begins alike."""
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"kinds: {kind!r} is unknown, known are {', '.join(KINDS)}")
    if not kinds:
        raise UserError(f"kinds: none given, known are {', '.join(KINDS)}")
    return (_one(number, seed, kinds[number % len(kinds)]) for number in range(count))


def _one(number: int, seed: int, kind: str) -> tuple[Trace, list[Section]]:
    chance = random.Random(f"{seed}:{kind}:{number}")
    problem = KINDS[kind](chance)
    sections = Narrator(problem, chance).sections()
    plain, annotated = paragraphs(sections)
    prompt = f"{problem.prompt}\n\n{chance.choice(_INSTRUCTIONS)}\n<think>\n"
    output = f"{plain}\n</think>\n\nThe answer is **{problem.answer}**."
    return Trace(f"{kind}/{seed}-{number}", kind, prompt, output, annotated), sections
