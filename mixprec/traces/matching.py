"""The longest block that an annotated segment shares with a trace: difflib's answer without difflib's time.

The released code of arXiv 2504.02010 takes the largest matching block of a ``difflib.SequenceMatcher`` over
a whole trace. That takes long, and difflib's popularity heuristic makes its answer differ from the longest
common substring. Here the same blocks, heuristic included, are found with ``str.find``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

#: difflib ignores popular characters in patterns of at least this length.
_HEURISTIC_FROM = 200


class Block(NamedTuple):
    """``size`` characters that stand at ``start`` in the text and at ``pattern_start`` in the pattern."""

    start: int
    pattern_start: int
    size: int


class _Window(NamedTuple):
    """The parts ``text[text_from:text_to]`` and ``pattern[pattern_from:pattern_to]``."""

    text_from: int
    text_to: int
    pattern_from: int
    pattern_to: int

    @property
    def room(self) -> int:
        """The longest block that fits."""
        return min(self.text_to - self.text_from, self.pattern_to - self.pattern_from)


def longest_block(text: str, pattern: str) -> Block:
    """The first largest block that difflib finds between ``text`` and ``pattern``.

    Equals ``max(SequenceMatcher(None, text, pattern).get_matching_blocks(), key=lambda block: block.size)``,
    so ``Block(len(text), len(pattern), 0)`` where nothing matches. That is the longest common substring for
    patterns under 200 characters only: in longer ones difflib starts its blocks from rare characters.
    """
    if len(pattern) < _HEURISTIC_FROM:
        return longest_common_substring(text, pattern)
    popular = _popular_characters(pattern)
    best: Block | None = None
    windows = [_Window(0, len(text), 0, len(pattern))]
    while windows:
        window = windows.pop()
        if best is not None and window.room < best.size:
            continue
        block = _block_in(window, text, pattern, popular)
        if not block.size:
            continue
        if best is None or (-block.size, block.start) < (-best.size, best.start):
            best = block
        windows += _around(block, window)
    return best or _nothing(text, pattern)


def longest_common_substring(text: str, pattern: str) -> Block:
    """The longest common substring, the earliest in ``text`` and then in ``pattern`` among equals.

    ``Block(len(text), len(pattern), 0)`` where the two have no character in common.
    """
    if pattern and (start := text.find(pattern)) >= 0:  # by far the most frequent case
        return Block(start, 0, len(pattern))
    window = _Window(0, len(text), 0, len(pattern))
    block = _longest_of_runs(text, pattern, [(0, len(pattern))], window)
    return block if block.size else _nothing(text, pattern)


def _nothing(text: str, pattern: str) -> Block:
    """difflib closes its list of blocks with an empty one; without a match it is all there is."""
    return Block(len(text), len(pattern), 0)


def _popular_characters(pattern: str) -> frozenset[str]:
    """Characters that difflib does not let start a block: those in more than about 1% of a long pattern."""
    limit = len(pattern) // 100 + 1
    return frozenset(character for character, count in Counter(pattern).items() if count > limit)


def _around(block: Block, window: _Window) -> Iterator[_Window]:
    """What is left of a window before and behind a block.

    Blocks from different windows never touch on both sides, since each was extended as far as its window and
    equality allow, so difflib's last step (joining adjacent blocks) has nothing to join here.
    """
    if window.text_from < block.start and window.pattern_from < block.pattern_start:
        yield _Window(window.text_from, block.start, window.pattern_from, block.pattern_start)
    text_from, pattern_from = block.start + block.size, block.pattern_start + block.size
    if text_from < window.text_to and pattern_from < window.pattern_to:
        yield _Window(text_from, window.text_to, pattern_from, window.pattern_to)


def _block_in(window: _Window, text: str, pattern: str, popular: frozenset[str]) -> Block:
    """difflib's longest match in a window: the longest run of rare characters, then whatever adjoins it.

    Where no rare character matches, the empty run at the window's corner is extended, as difflib does.
    """
    start, pattern_start, size = _longest_of_runs(text, pattern, _rare_runs(window, pattern, popular), window)
    while (
        start > window.text_from
        and pattern_start > window.pattern_from
        and text[start - 1] == pattern[pattern_start - 1]
    ):
        start, pattern_start, size = start - 1, pattern_start - 1, size + 1
    while (
        start + size < window.text_to
        and pattern_start + size < window.pattern_to
        and text[start + size] == pattern[pattern_start + size]
    ):
        size += 1
    return Block(start, pattern_start, size)


def _rare_runs(window: _Window, pattern: str, popular: frozenset[str]) -> list[tuple[int, int]]:
    """The runs ``pattern[first:last]`` without popular characters in a window."""
    runs: list[tuple[int, int]] = []
    for at in range(window.pattern_from, window.pattern_to):
        if pattern[at] in popular:
            continue
        if runs and runs[-1][1] == at:
            runs[-1] = (runs[-1][0], at + 1)
        else:
            runs.append((at, at + 1))
    return runs


def _longest_of_runs(text: str, pattern: str, runs: list[tuple[int, int]], window: _Window) -> Block:
    """The longest substring of any run that stands in the window's text; ties as in difflib.

    Among equals the earliest in the text wins, then the earliest in the pattern. Where no character matches,
    it is empty and lies in the window's corner.
    """
    size = _longest_size(text, pattern, runs, window)
    start, pattern_start = window.text_to, window.pattern_from
    if not size:
        return Block(window.text_from, window.pattern_from, 0)
    for first, last in runs:
        for at in range(first, last - size + 1):
            # Only an earlier place than the best so far is of interest, so each search ends there.
            found = text.find(pattern[at : at + size], window.text_from, min(start + size - 1, window.text_to))
            if found >= 0:
                start, pattern_start = found, at
    return Block(start, pattern_start, size)


def _longest_size(text: str, pattern: str, runs: list[tuple[int, int]], window: _Window) -> int:
    """How long the longest common run is.

    A substring is only looked for when it is one character longer than the best so far, so there are at most
    ``len(pattern) + size`` searches.
    """
    size = 0
    for first, last in runs:
        for at in range(first, last):
            while at + size < last and text.find(pattern[at : at + size + 1], window.text_from, window.text_to) >= 0:
                size += 1
    return size
