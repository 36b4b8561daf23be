"""Sentences: where they end, and that nothing gets lost."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixprec.traces.sentences import is_latin, split


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("So it is 4. Wait, no! Is it?  Yes.", ["So it is 4.", "Wait, no!", "Is it?", "Yes."]),
        ("One line\nanother one\n\na third.", ["One line", "another one", "a third."]),
        ("No. Dr. Who met J. R. Smith. They left.", ["No.", "Dr. Who met J. R. Smith.", "They left."]),
        ("He said 'no.' Then he left.", ["He said 'no.'", "Then he left."]),
        ("It is 3.14 or so... Hmm.", ["It is 3.14 or so...", "Hmm."]),
        ("\\[\nx = 3.\n\\]", ["\\[", "x = 3.", "\\]"]),
        ("  \n ", []),
    ],
)
def test_ends(text: str, expected: list[str]) -> None:
    assert [sentence.text for sentence in split(text)] == expected


def test_paragraphs_begin_behind_empty_lines() -> None:
    opens = [sentence.opens for sentence in split("One. Two.\nThree.\n\nFour.\n \nFive.")]
    assert opens == [True, False, False, True, True]


@given(st.text(alphabet=" \n.?!…'\")aB1\\é中", max_size=80), st.integers(0, 10), st.integers(0, 10))
def test_all_that_is_no_blank_is_in_one_sentence(text: str, start: int, cut: int) -> None:
    end = max(start, len(text) - cut)
    found = split(text, start, end)
    assert all(text[sentence.start : sentence.end] == sentence.text == sentence.text.strip() for sentence in found)
    assert all(one.end <= other.start for one, other in pairwise(found))
    kept = "".join(sentence.text for sentence in found)
    assert re.sub(r"\s", "", kept) == re.sub(r"\s", "", text[start:end])


def test_scripts() -> None:
    assert is_latin("Ça va: x² = 4") and is_latin("12 + 3 = 15") and is_latin("The word 好 means good.")
    assert not is_latin("所以答案是 x = 4。") and not is_latin("Это неверно.")
