"""Answers that are mathematical expressions (MATH-500): what a box or a label holds, compared by value.

Math-Verify reads and compares them (github.com/huggingface/Math-Verify), as lighteval does for this benchmark.
"""

from __future__ import annotations

import importlib.util
import re
import threading

from mixprec.core.errors import UserError
from mixprec.evaluate.benchmarks.schema import Question
from mixprec.evaluate.scoring.labels import labelled
from mixprec.evaluate.scoring.text import boxed
from mixprec.evaluate.scoring.verdict import Candidate

#: Characters of an answer that are looked at, and seconds that reading and comparing may take.
_LONGEST, _SECONDS = 400, 5
_MATH = re.compile(r"\$\$?([^$]{1,400})\$\$?|\\\((.{1,400}?)\\\)|\\\[(.{1,400}?)\\\]", re.DOTALL)


def require() -> None:
    """Raises UserError where the package that compares expressions is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise UserError("benchmarks: math_500: Math-Verify is not installed; run: pip install 'mixprec[math]'")


def strong(text: str, question: Question) -> Candidate | None:
    """What the last box holds, else what stands behind the last label."""
    if box := next(boxed(text), None):
        return Candidate(box.strip()[:_LONGEST], "boxed")
    said = next(labelled(text), None)
    return Candidate(_bare(said.text), "labelled") if said else None


def weak(text: str, question: Question) -> Candidate | None:
    """The last formula."""
    found = list(_MATH.finditer(text[-4 * _LONGEST :]))
    return Candidate(next(filter(None, found[-1].groups())).strip(), "formula") if found else None


def _bare(text: str) -> str:
    """A label's text without marks around it; of a sentence with formulas the first one."""
    formula = _MATH.search(text)
    return next(filter(None, formula.groups())).strip() if formula else text.strip(" *_`.")[:_LONGEST]


def equal(answer: str, gold: str) -> bool:
    """Whether two expressions have one value, or are one set, interval, tuple or text. It never raises."""
    if answer.strip() == gold.strip():
        return True
    from math_verify import parse, verify

    # Its limit of time is an alarm, which only the main thread has.
    seconds = _SECONDS if threading.current_thread() is threading.main_thread() else 0
    parsed = [parse(f"${each}$", parsing_timeout=seconds) for each in (gold, answer)]
    return all(parsed) and bool(verify(*parsed, timeout_seconds=seconds))
