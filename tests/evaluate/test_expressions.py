"""Expressions as answers: what counts as the answer, and what is equal."""

from __future__ import annotations

import threading

import pytest

from mixprec.evaluate.benchmarks import Question
from mixprec.evaluate.scoring import score
from mixprec.evaluate.scoring.expressions import equal, require

pytest.importorskip("math_verify", reason="pip install 'mixprec[math]'")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\frac{1}{2}", "0.5"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\dfrac{\pi}{2})"),
        ("2x + 1", "1+2x"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
        (r"[0,1)", r"\left[0, 1\right)"),
        (r"\text{Evelyn}", "Evelyn"),
        ("10,000", "10000"),
    ],
)
def test_equal_ones(one: str, other: str) -> None:
    assert equal(one, other) and equal(other, one)


@pytest.mark.parametrize(
    ("one", "other"), [("0.5", "0.51"), ("(1,2)", "(2,1)"), ("x", "y"), ("", "1"), (r"\frac{", "1"), ("[0,1]", "(0,1)")]
)
def test_different_ones(one: str, other: str) -> None:
    assert not equal(one, other)


def test_threads_without_alarms_compare_too() -> None:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(equal("0.5", r"\frac12")))
    thread.start()
    thread.join()
    assert found == [True]


@pytest.mark.parametrize(
    ("output", "outcome", "answer"),
    [
        ("So.</think>\nThe answer is $\\boxed{0.5}$.", "correct", "0.5"),
        ("So.</think>\n**Answer:** $\\frac12$", "correct", "\\frac12"),
        ("So.</think>\nThen we get $x = 3$ and finally \\(0.25\\).", "wrong", "0.25"),
        ("It is \\boxed{0.5}, I think</think>\nDone.", "correct", "0.5"),
        ("Nothing to see</think>\nSorry.", "none", None),
    ],
)
def test_what_an_output_answers(output: str, outcome: str, answer: str | None) -> None:
    require()
    question = Question("q", "math_500", "expression", "m", "p", r"\frac{1}{2}")
    found = score(question, output, True)
    assert (found.outcome, found.answer) == (outcome, answer)
