"""From rows to questions: the paper's prompts, character by character, as its code builds them (arXiv 2504.02010)."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mixprec.evaluate.benchmarks.schema import THINK, Kind, Question, Row

THINK_ON_A_LINE = "\n" + THINK

_FOLIO = (
    "Use logical deductions to determine whether the provided conclusion is true, false, or uncertain based on "
    "premise. Consider all relevant information to reach a logical conclusion.\n\n"
    "*******\nPremise: {premises}\n*******\n\n*******\nConclusion: {conclusion}\n*******"
)
_TEMPORAL = (
    "Use the timeline provided and answer step by step. "
    "Finally give the index (the letter) of the actual correct answer.\n{input}"
)
_MUSIQUE = "{question} Final answer of this question should be in as fewer number of words as possible."
_GPQA = "{question}\n\n{options}\n\nFinally give the index (the letter) of the actual correct answer."
#: The right answer first.
GPQA_OPTIONS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
_RAG = "Answer the question with the help of the passages below.\n\n{passages}\n\nQuestion: {message}"

_TRUTHS = ("True", "False", "Uncertain")
_OPTION = re.compile(r"^\(([A-Z])\) (.*)$", re.MULTILINE)


def aime(row: Row) -> Question:
    """AIME: the problem as it is; an integer from 0 to 999.

    The hub's own defects stay in the text (a form feed for ``\\f``, a tab for ``\\t``): the paper's prompts had them.
    """
    problem = row.text("Problem")
    gold = row.value("Answer", int, str)
    digits = str(gold).strip()
    if not re.fullmatch(r"[0-9]{1,3}", digits):
        raise row.refuse("Answer", gold, "an integer from 0 to 999")
    return _question(row, row.text("ID"), "integer", problem, str(int(digits)), THINK_ON_A_LINE)


def competition(row: Row) -> Question:
    """AIME of other years: ``problem`` and ``answer``, an integer from 0 to 999; ``id`` where rows have one."""
    gold = str(row.value("answer", int, str)).strip()
    if not re.fullmatch(r"[0-9]{1,3}", gold):
        raise row.refuse("answer", gold, "an integer from 0 to 999")
    return _question(row, _own_id(row, "id"), "integer", row.text("problem"), str(int(gold)), THINK_ON_A_LINE)


def math(row: Row) -> Question:
    """MATH: the problem as it is; an expression in LaTeX."""
    return _question(
        row, _own_id(row, "unique_id"), "expression", row.text("problem"), row.text("answer").strip(), THINK_ON_A_LINE
    )


def gpqa(row: Row) -> Question:
    """GPQA: a question and four options, in an order drawn by its id, since rows have the right one first."""
    answers = [row.text(column) for column in GPQA_OPTIONS]
    identifier = _own_id(row, "Record ID")
    order = random.Random(f"gpqa/{identifier}").sample(range(len(answers)), len(answers))
    options = {letter: answers[number].strip() for letter, number in zip("ABCD", order, strict=True)}
    shown = "\n".join(f"({letter}) {text}" for letter, text in options.items())
    message = _GPQA.format(question=row.text("Question").strip(), options=shown)
    letter = "ABCD"[order.index(0)]
    return _question(row, identifier, "letter", message, letter, THINK_ON_A_LINE, extra={"options": options})


def _own_id(row: Row, column: str) -> str:
    """A row's id in a column that files may lack; else its number."""
    found = row.values.get(column)
    known = isinstance(found, int | str) and not isinstance(found, bool)
    return str(found) if known else f"{row.benchmark}_{row.number}"


def folio(row: Row) -> Question:
    """FOLIO: premises and conclusion; True, False or Uncertain."""
    message = _FOLIO.format(premises=row.text("premises"), conclusion=row.text("conclusion"))
    gold = row.text("label")
    if gold.strip().capitalize() not in _TRUTHS:
        raise row.refuse("label", gold, ", ".join(_TRUTHS))
    identifier = str(row.value("example_id", int, str))
    # The reference opens the thinking on the line of the asterisks here.
    gold = gold.strip().capitalize()
    return _question(row, identifier, "truth", message, gold, THINK, extra={"conclusion": row.text("conclusion")})


def temporal_sequences(row: Row) -> Question:
    """BIG-Bench Hard's Temporal Sequences: a timeline and four spans of time; the letter of one. Rows have no ids."""
    text = row.text("input")
    options = dict(_OPTION.findall(text))
    if not options:
        raise row.refuse("input", text[:60], "options in lines of the form '(A) 6pm to 9pm'")
    gold = row.text("target")
    letter = gold.strip().strip("()")
    if letter not in options:
        raise row.refuse("target", gold, f"one of {', '.join(f'({letter})' for letter in options)}")
    identifier = f"temporal_sequences_{row.number}"
    message = _TEMPORAL.format(input=text)
    return _question(row, identifier, "letter", message, letter, THINK_ON_A_LINE, extra={"options": options})


def musique(row: Row) -> Question:
    """MuSiQue, closed book: the question alone; a few words, with aliases."""
    asked = row.text("question")
    message = _MUSIQUE.format(question=asked)
    aliases = row.value("answer_aliases", list) if "answer_aliases" in row.values else []
    if not all(isinstance(alias, str) for alias in aliases):
        raise row.refuse("answer_aliases", aliases, "a list of texts")
    if row.values.get("answerable") is False:
        raise row.refuse("answerable", False, "questions of MuSiQue-Answerable only")
    rows = row.value("paragraphs", list)
    extra = {
        "question": asked,
        "paragraphs": [_paragraph(row, each) for each in rows],
        "supporting": [number for number, each in enumerate(rows) if each.get("is_supporting")],
    }
    gold = row.text("answer")
    return _question(row, row.text("id"), "words", message, gold, THINK_ON_A_LINE, tuple(aliases), extra)


def with_passages(question: Question, passages: Sequence[tuple[str, str]]) -> Question:
    """A question behind passages (title, text), the nearest first: MuSiQue with retrieval.

    The paper gives no prompt for it (Appendix L); the question keeps its closed-book wording.
    """
    shown = "\n\n".join(f"{title}\n{text}" for title, text in passages)
    message = _RAG.format(passages=shown, message=question.message)
    return dataclasses.replace(
        question,
        benchmark="musique_rag",
        message=message,
        prompt=message + THINK_ON_A_LINE,
        extra={**question.extra, "passages": list(passages), "closed_book": question.message},
    )


def _paragraph(row: Row, value: Any) -> tuple[str, str]:
    if isinstance(value, dict) and isinstance(value.get("title"), str) and isinstance(value.get("paragraph_text"), str):
        return value["title"], value["paragraph_text"]
    raise row.refuse("paragraphs", str(value)[:60], "objects with title and paragraph_text")


def _question(
    row: Row,
    identifier: str,
    kind: Kind,
    message: str,
    answer: str,
    opening: str,
    aliases: tuple[str, ...] = (),
    extra: Mapping[str, Any] | None = None,
) -> Question:
    return Question(identifier, row.benchmark, kind, message, message + opening, answer, aliases, extra or {})
