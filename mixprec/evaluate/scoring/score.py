"""Scoring one output against one question."""

from __future__ import annotations

import re
from collections.abc import Callable

from mixprec.evaluate.benchmarks.schema import Kind, Question
from mixprec.evaluate.scoring import overlap
from mixprec.evaluate.scoring.sections import split
from mixprec.evaluate.scoring.verdict import Place, Verdict

_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_LABEL = re.compile(r"\banswer\b[*:\s]*(?:is)?[*:\s]+([^\n]+)", re.IGNORECASE)

_READERS: dict[Kind, Callable[[str], str | None]] = {
    "integer": lambda text: str(int(found[-1])) if (found := re.findall(r"\b[0-9]{1,3}\b", text)) else None,
    "truth": lambda text: (
        found[-1].capitalize() if (found := re.findall(r"\b(true|false|uncertain)\b", text, re.IGNORECASE)) else None
    ),
    "letter": lambda text: found[-1] if (found := re.findall(r"\b([A-D])\b", text)) else None,
    "words": lambda text: text.strip(" *.\n") or None,
}


def score(question: Question, output: str) -> Verdict:
    """The verdict on an output; never raises."""
    sections = split(output)
    place: Place = "unclosed" if sections.answer is None else "answer"
    text = sections.thinking if sections.answer is None else sections.answer
    for why, pattern in (("boxed", _BOXED), ("labelled", _LABEL)):
        for candidate in reversed(pattern.findall(text)):
            answer = _READERS[question.kind](candidate)
            if answer:
                return compare(question, answer, place, why)
    return Verdict("none", None, 0.0, 0.0, None, "no answer was found")


def compare(question: Question, answer: str, place: Place, why: str) -> Verdict:
    """The verdict on an answer that was extracted."""
    golds = (question.answer, *question.aliases)
    if question.kind == "words":
        em, f1 = overlap.exact_match(answer, golds), overlap.f1(answer, golds)
    else:
        em = f1 = float(answer in golds)
    return Verdict("correct" if em else "wrong", answer, em, f1, place, why)
