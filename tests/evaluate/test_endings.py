"""Endings of outputs, written with the answer that a careful reader would take from them before any was scored.

``data/endings.jsonl``: kind of question, what was asked (of a truth: the conclusion; MuSiQue's by ``id``), text behind
``</think>``, and the answer, null where the text gives none.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from test_scoring import OPTIONS, THOUGHT

from mixprec.core import artifacts
from mixprec.evaluate import benchmarks
from mixprec.evaluate.benchmarks import Question
from mixprec.evaluate.scoring import score
from mixprec.evaluate.scoring.overlap import normalise

ENDINGS = artifacts.read_jsonl(Path(__file__).parent / "data" / "endings.jsonl")


@functools.cache
def musique(file: str) -> list[Question]:
    return benchmarks.load("musique", file)


def ask(row: dict[str, Any]) -> Question:
    extra = {"letter": {"options": OPTIONS}, "truth": {"conclusion": row["asked"]}}.get(row["kind"], {})
    return Question("1", "test", row["kind"], row["asked"], row["asked"], row["answer"] or "?", (), extra)


@pytest.mark.parametrize("row", ENDINGS, ids=lambda row: f"{row['kind']}-{row['text'][-40:]}")
def test_ending(row: dict[str, Any], request: pytest.FixtureRequest) -> None:
    """The thinking in front has every kind of answer, which must not leak where the text behind it has one."""
    if "id" in row:
        file = request.getfixturevalue("shared_data") / "benchmarks" / "musique.jsonl"
        row = {**row, "asked": next(each.asked for each in musique(str(file)) if each.id == row["id"])}
    verdict = score(ask(row), THOUGHT + row["text"])
    if row["answer"] is None:
        assert verdict.place != "answer", verdict
        return
    assert (verdict.outcome, verdict.place) == ("correct", "answer"), verdict
    assert normalise(verdict.answer or "") == normalise(row["answer"])


SECTIONS = [
    (
        "letter",
        "So it is B.\n</think>\n\n**Answer:** (B)\n\n<think>\nWait, look again at (D). She was",
        False,
        "B",
    ),
    ("letter", "Hmm.\n</think>\n\nIt is (D).\n\n<think>\nNo, (D) is taken.\n</think>\n\n**Answer:** (B)", True, "B"),
    ("letter", "She was free then.\n\nTherefore, the correct answer is (B) 7am to 11am.", True, "B"),
    ("letter", "She was free then.\n\nTherefore, the correct answer is (B) 7am to 11am.", False, None),
    ("integer", "**Final Answer**\n\\boxed{116}\n</think>\n\nLet $S$ be the set. Next, we coun", False, "116"),
    ("integer", "I think the answer is 116. " * 300, None, None),
    ("integer", "<think>\nLet me see. 12 cases.\n</think>\nThe total number is 12", True, "12"),
    ("truth", "So all in all, the conclusion is uncertain.\n</think>\n\nI hope this helps!", None, "Uncertain"),
    ("truth", "Okay, the conclusion is false, I think. But wait, premise 3 says that all w", None, None),
]


@pytest.mark.parametrize(("kind", "output", "finished", "expected"), SECTIONS)
def test_where_an_output_ends(kind: str, output: str, finished: bool | None, expected: str | None) -> None:
    row = {"kind": kind, "asked": "Tom is an Eastern wild turkey.", "answer": expected}
    verdict = score(ask(row), output, finished)
    assert verdict.answer == expected, verdict
