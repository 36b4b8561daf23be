"""Scoring one output against one question."""

from __future__ import annotations

from typing import Protocol

from mixprec.evaluate.benchmarks.schema import Kind, Question
from mixprec.evaluate.scoring import expressions, integers, letters, overlap, truths, words
from mixprec.evaluate.scoring.sections import Sections, split
from mixprec.evaluate.scoring.text import boxed
from mixprec.evaluate.scoring.verdict import Candidate, Place, Verdict
from mixprec.traces.thinking import TAGS, Tag


class _Reader(Protocol):
    """A module for a kind: ``strong`` goes by what the model marked as its answer, ``weak`` by what it said last."""

    def strong(self, text: str, question: Question) -> Candidate | None: ...
    def weak(self, text: str, question: Question) -> Candidate | None: ...


_READERS: dict[Kind, _Reader] = {
    "integer": integers,
    "truth": truths,
    "letter": letters,
    "words": words,
    "expression": expressions,
}


def score(
    question: Question,
    output: str,
    finished: bool | None = None,
    opened: bool = True,
    tags: tuple[Tag, ...] = TAGS,
) -> Verdict:
    """The verdict on an output; it never raises.

    ``finished``: whether the model stopped by itself, False where the limit of tokens cut it; None where nobody knows,
    then the text tells. What stands in a thinking that was never finished is no answer, however often it was said.
    ``opened``: whether the prompt opened a thinking, as the paper's do; an output may open one too. ``tags``: what
    opens and closes one.
    """
    if not output.strip():
        return _none("empty output")
    sections = split(output, finished, opened, tags)
    if sections.closed:
        return _closed(question, sections)
    reader = _READERS[question.kind]
    found = reader.strong(sections.answer, question)
    if not sections.ended or sections.apart:
        return _none("unfinished thinking", stated=found.answer if found else None)
    found = found or reader.weak(sections.answer, question)
    if not found and question.kind == "integer" and (box := next(boxed(output), None)):
        found = Candidate(integers.in_box(box), "boxed")
    return compare(question, found, "unclosed") if found else _none(_why_none(question, sections.answer))


def _closed(question: Question, sections: Sections) -> Verdict:
    """Behind ``</think>`` first; where nothing there answers, what the thinking concluded."""
    reader = _READERS[question.kind]
    if found := reader.strong(sections.answer, question):
        return compare(question, found, "answer")
    # A number of a solution that was cut short is none of its conclusion.
    if (sections.ended or question.kind != "integer") and (found := reader.weak(sections.answer, question)):
        return compare(question, found, "answer")
    if question.kind == "words" and words.declines(sections.answer):
        return _none("declines to answer")
    if found := reader.strong(sections.thinking, question):
        return compare(question, found, "thinking")
    return _none(_why_none(question, sections.answer))


def compare(question: Question, found: Candidate, place: Place) -> Verdict:
    """The verdict on an answer that was found, or on its refusal."""
    if found.answer is None:
        return _none(found.why)
    golds = (question.answer, *question.aliases)
    if question.kind == "words":
        em, f1 = overlap.exact_match(found.answer, golds), overlap.f1(found.answer, golds)
    elif question.kind == "expression":
        em = f1 = float(expressions.equal(found.answer, question.answer))
    else:
        em = f1 = float(found.answer in golds)
    return Verdict("correct" if em else "wrong", found.answer, em, f1, place, found.why)


def _none(why: str, stated: str | None = None) -> Verdict:
    return Verdict("none", None, 0.0, 0.0, None, why, stated)


def _why_none(question: Question, text: str) -> str:
    if question.kind == "words" and words.declines(text):
        return "declines to answer"
    return "no answer was found"


def counting_unfinished(question: Question, verdict: Verdict) -> Verdict:
    """The verdict that a lenient scorer gives: what an unfinished thinking said last counts as its answer."""
    if verdict.stated is None:
        return verdict
    return compare(question, Candidate(verdict.stated, verdict.why), "unclosed")
