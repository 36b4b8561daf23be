"""The longest block that an annotated segment shares with a trace: difflib's answer without difflib's time.

The released code of arXiv 2504.02010 takes the largest matching block of a ``difflib.SequenceMatcher`` over
a whole trace. That takes long, and difflib's popularity heuristic makes its answer differ from the longest
common substring. Here the same blocks, heuristic included, are found with ``str.find``.
"""

from __future__ import annotations

from collections import Counter
from difflib import Match, SequenceMatcher
from typing import NamedTuple

#: difflib ignores popular characters in patterns of at least this length.
_HEURISTIC_FROM = 200


class Block(NamedTuple):
    """``size`` characters that stand at ``start`` in the text and at ``pattern_start`` in the pattern."""

    start: int
    pattern_start: int
    size: int


def longest_block(text: str, pattern: str) -> Block:
    """The first largest block that difflib finds between ``text`` and ``pattern``.

    Equals ``max(SequenceMatcher(None, text, pattern).get_matching_blocks(), key=lambda block: block.size)``,
    so ``Block(len(text), len(pattern), 0)`` where nothing matches. That is the longest common substring for
    patterns under 200 characters only: in longer ones difflib starts its blocks from rare characters.
    """
    if len(pattern) < _HEURISTIC_FROM:
        return longest_common_substring(text, pattern)
    return Block(*max(_Matcher(text, pattern).get_matching_blocks(), key=lambda block: block.size))


def longest_common_substring(text: str, pattern: str) -> Block:
    """The longest common substring, the earliest in ``text`` and then in ``pattern`` among equals.

    ``Block(len(text), len(pattern), 0)`` where the two have no character in common.
    """
    if pattern and (start := text.find(pattern)) >= 0:  # by far the most frequent case
        return Block(start, 0, len(pattern))
    return _longest_of_runs(text, pattern, [(0, len(pattern))], 0, len(text)) or Block(len(text), len(pattern), 0)


class _Matcher(SequenceMatcher[str]):
    """difflib's order of windows, with a search of our own in each."""

    def __init__(self, text: str, pattern: str) -> None:
        super().__init__(None, text, pattern)
        self._text, self._pattern = text, pattern
        self._popular = _popular_characters(pattern)
        self._largest = 0

    def find_longest_match(self, alo: int = 0, ahi: int | None = None, blo: int = 0, bhi: int | None = None) -> Match:
        """difflib's longest match in ``text[alo:ahi]`` and ``pattern[blo:bhi]``, a window.

        It is the longest run of rare characters, then whatever adjoins it. Where no rare character matches, the empty
        run at the window's corner is extended, as difflib does. Windows smaller than the largest block are passed over.
        """
        text, pattern = self._text, self._pattern
        assert ahi is not None and bhi is not None
        if min(ahi - alo, bhi - blo) < self._largest:
            return Match(alo, blo, 0)
        found = _longest_of_runs(text, pattern, self._rare_runs(blo, bhi), alo, ahi)
        start, pattern_start, size = found or Block(alo, blo, 0)
        while start > alo and pattern_start > blo and text[start - 1] == pattern[pattern_start - 1]:
            start, pattern_start, size = start - 1, pattern_start - 1, size + 1
        while start + size < ahi and pattern_start + size < bhi and text[start + size] == pattern[pattern_start + size]:
            size += 1
        self._largest = max(self._largest, size)
        return Match(start, pattern_start, size)

    def _rare_runs(self, pattern_from: int, pattern_to: int) -> list[tuple[int, int]]:
        """The runs ``pattern[first:last]`` without popular characters in a window."""
        runs: list[tuple[int, int]] = []
        for at in range(pattern_from, pattern_to):
            if self._pattern[at] in self._popular:
                continue
            if runs and runs[-1][1] == at:
                runs[-1] = (runs[-1][0], at + 1)
            else:
                runs.append((at, at + 1))
        return runs


def _popular_characters(pattern: str) -> frozenset[str]:
    """Characters that difflib does not let start a block: those in more than about 1% of a long pattern."""
    limit = len(pattern) // 100 + 1
    return frozenset(character for character, count in Counter(pattern).items() if count > limit)


def _longest_of_runs(
    text: str, pattern: str, runs: list[tuple[int, int]], text_from: int, text_to: int
) -> Block | None:
    """The longest substring of any run that stands in ``text[text_from:text_to]``; None where no character does.

    Among equals the earliest in the text wins, then the earliest in the pattern, as in difflib. A substring is only
    looked for when it is one character longer than the best so far, so at most ``len(pattern) + size`` searches find
    the size.
    """
    size = 0
    for first, last in runs:
        for at in range(first, last):
            while at + size < last and text.find(pattern[at : at + size + 1], text_from, text_to) >= 0:
                size += 1
    if not size:
        return None
    start, pattern_start = text_to, 0
    for first, last in runs:
        for at in range(first, last - size + 1):
            # Only an earlier place than the best so far is of interest, so each search ends there.
            found = text.find(pattern[at : at + size], text_from, min(start + size - 1, text_to))
            if found >= 0:
                start, pattern_start = found, at
    return Block(start, pattern_start, size)
