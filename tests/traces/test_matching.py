"""The fast matcher against difflib itself."""

from __future__ import annotations

import difflib
import random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mixprec.traces.matching import longest_block, longest_common_substring


def difflib_block(text: str, pattern: str, autojunk: bool = True) -> tuple[int, int, int]:
    matcher = difflib.SequenceMatcher(None, text, pattern, autojunk=autojunk)
    return tuple(max(matcher.get_matching_blocks(), key=lambda block: block.size))


@st.composite
def texts_and_patterns(draw: st.DrawFn) -> tuple[str, str]:
    """Small alphabets, so that popular characters arise, and patterns that are edited slices of the text."""
    alphabet = draw(st.sampled_from(["ab", "abc", "aaaabbbcdefgh", "ababab.XYZ", "abcdefghijklmnopqrstuvwxyz"]))
    rng = random.Random(draw(st.integers(0, 2**32)))
    text = "".join(rng.choices(alphabet, k=draw(st.integers(0, 600))))
    if draw(st.booleans()):
        pattern = list("".join(rng.choices(alphabet, k=draw(st.integers(0, 600)))))
    else:
        begin = draw(st.integers(0, len(text)))
        pattern = list(text[begin : draw(st.integers(begin, len(text)))] * draw(st.integers(1, 2)))
    for _ in range(draw(st.integers(0, 12))):
        at = rng.randint(0, len(pattern))
        pattern[at : at + rng.randint(0, 2)] = rng.choices(alphabet + "!", k=rng.randint(0, 2))
    return text, "".join(pattern)


@settings(max_examples=400, deadline=None)
@given(texts_and_patterns())
@example(("", ""))
@example(("abc", ""))
@example(("", "abc"))
@example(("abc", "xyz"))
@example(("ab" * 300, "ab" * 100))  # nothing but popular characters: blocks start from window corners
@example(("b" + "ab" * 300, "ab" * 100))
def test_longest_block_is_difflibs(case: tuple[str, str]) -> None:
    text, pattern = case
    assert longest_block(text, pattern) == difflib_block(text, pattern)


@settings(max_examples=200, deadline=None)
@given(texts_and_patterns())
def test_common_substring_is_difflibs_without_heuristic(case: tuple[str, str]) -> None:
    text, pattern = case
    assert longest_common_substring(text, pattern) == difflib_block(text, pattern, autojunk=False)


def test_heuristic_hides_a_verbatim_copy() -> None:
    """What makes the heuristic matter: a long copy without rare characters is not found as a whole."""
    pattern = "ab" * 150
    text = "b" + pattern
    assert longest_common_substring(text, pattern).size == len(pattern)
    assert longest_block(text, pattern).size < len(pattern)
