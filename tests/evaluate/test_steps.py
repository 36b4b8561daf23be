"""Work on an output grows as its length does, whatever stands in it: steps are counted, not seconds."""

from __future__ import annotations

import re

import pytest
import steps
from hypothesis import given
from hypothesis import strategies as st

from mixprec.evaluate import diagnosis
from mixprec.traces import annotate

PIECES = [
    "\\(", "\\[", "$", "$$", "`", "\\", "\\a", "http://", "**", "{", "\\boxed{", " ", "\n", "<think>", "</think>", "1",
    "1,", '"', "(A)", ". ", "a", "Ab ", "The cat sat. ", "_", "北京。", "\\(x", "$a ", "```\n",
]  # fmt: skip
TAGS = ['["deduction"]', '["end-section"]', '["', "[ ", '["a"] x ', '["deduction"] a ["end-section"] ', "[1]"]
SIZE = 1200


@pytest.mark.parametrize("piece", PIECES)
def test_diagnosing_takes_linear_steps(monkeypatch: pytest.MonkeyPatch, piece: str) -> None:
    texts = [piece * (size // len(piece)) for size in (SIZE, 2 * SIZE)]
    once, twice = steps.count(monkeypatch, [diagnosis], lambda text: diagnosis.diagnose(text, "length"), *texts)
    assert 0 < twice < 2.5 * once
    assert twice < 300 * len(texts[1])


@pytest.mark.parametrize("rule", ["paper", "released", "aligned"])
@pytest.mark.parametrize("piece", TAGS)
def test_reading_annotations_takes_linear_steps(
    monkeypatch: pytest.MonkeyPatch, piece: str, rule: annotate.Rule
) -> None:
    texts = [piece * (size // len(piece)) for size in (SIZE, 2 * SIZE)]
    once, twice = steps.count(monkeypatch, [annotate], lambda text: annotate.parse(text, rule), *texts)
    assert 0 < twice < 2.5 * once


def test_steps_show_what_is_quadratic(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pattern that formulas were found with before."""
    old = steps.Counting(re.compile(r"\\\[.*?\\\]|\\\(.*?\\\)", re.DOTALL))
    found = []
    for size in (300, 600):
        steps.Counting.steps = 0
        old.sub(" ", "\\(" * size)
        found.append(steps.Counting.steps)
    assert found[1] > 3.5 * found[0]


#: Formulas, code and addresses as one pattern, which took quadratic time.
_BEFORE = re.compile(r"\$\$.*?\$\$|\$[^$\n]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\\[A-Za-z]+|https?://\S+|`[^`\n]*`", re.DOTALL)


@given(st.lists(st.sampled_from(["\\(", "\\)", "\\[", "\\]", "$", "$$", "\\", "a", " ", "\n", "`", "http://", "("])))
def test_formulas_are_those_of_one_pattern(parts: list[str]) -> None:
    text = "".join(parts)
    assert diagnosis._without_formulas(text) == _BEFORE.sub(" ", text)
