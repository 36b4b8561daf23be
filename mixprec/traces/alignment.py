"""The ``aligned`` rule: segments in reading order, so that a repeated sentence maps to its own occurrence.

An annotator copies a trace from beginning to end. The released rule takes each segment for itself and so puts
a repeated sentence at its first occurrence, or into the prompt. Here all segments of a trace are placed
together: of all ways to put exact occurrences in reading order, the one that matches the most characters.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

from mixprec.traces.matching import longest_common_substring

#: What annotators change when they copy is not compared: white space, Markdown's emphasis and LaTeX's
#: delimiters (``theta`` comes back as ``\( \theta \)``). Curly quotes count as straight ones.
_IGNORED = frozenset("*`\\()[]{}$")
_STRAIGHT = str.maketrans("“”‘’", "\"\"''")


class Skeleton(NamedTuple):
    """The characters of a text that are compared; ``offsets[i]`` is where character i stood in the text."""

    text: str
    offsets: list[int]


class Place(NamedTuple):
    """Where a segment stands, in half-open characters of the text; ``reason`` where it has no place."""

    start: int
    end: int
    reason: str = ""


class _Link(NamedTuple):
    """An occurrence on a chain: segment number ``segment`` at ``start``, and the link before it."""

    segment: int
    start: int
    before: _Link | None


class _Score(NamedTuple):
    """What a chain is worth: matched characters first, then segments that directly follow the one before."""

    characters: int
    joints: int


_NO_SCORE = _Score(0, 0)


def skeleton(text: str) -> Skeleton:
    """Leave out what annotators change in copying."""
    offsets = [at for at, character in enumerate(text) if not (character.isspace() or character in _IGNORED)]
    return Skeleton("".join(text[at] for at in offsets).translate(_STRAIGHT), offsets)


def align(text: str, segments: Sequence[str], threshold: float) -> list[Place]:
    """One place for each segment.

    Segments off the best chain of exact occurrences are looked for in the gap between their neighbours on it:
    the longest common substring counts if it covers ``threshold`` of the segment's compared characters. What
    then has no place has a reason: ``empty``, ``out_of_order`` (it occurs, but elsewhere) or ``not_found``.
    Places follow each other without overlap.
    """
    trace = skeleton(text)
    skeletons = [skeleton(segment) for segment in segments]
    starts = _best_chain(trace.text, [pattern.text for pattern in skeletons])
    limits = _next_starts(starts, len(segments), len(trace.text))
    places = []
    reached = floor = 0  # where the segment before ended, in the skeleton and in the text
    for index, (segment, pattern) in enumerate(zip(segments, skeletons, strict=True)):
        found = _find(pattern.text, starts.get(index), trace.text, reached, limits[index], threshold)
        if isinstance(found, str):
            places.append(Place(0, 0, found))
            continue
        reached = found.stop
        start, end = trace.offsets[found.start], trace.offsets[found.stop - 1] + 1
        if len(found) == len(pattern.text):
            # Characters that were not compared belong to the span where the segment's own edges have them.
            head, tail = segment[: pattern.offsets[0]], segment[pattern.offsets[-1] + 1 :]
            start -= _agreement(reversed(text[floor:start]), reversed(head))
            end += _agreement(text[end : end + len(tail)], tail)
        places.append(Place(start, end))
        floor = end
    return places


def _agreement(first: Iterable[str], second: Iterable[str]) -> int:
    """How many characters agree from the beginning on."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _next_starts(starts: dict[int, int], count: int, end: int) -> list[int]:
    """For each segment, where the next one on the chain starts."""
    limits = []
    for index in reversed(range(count)):
        limits.append(end)
        end = starts.get(index, end)
    return limits[::-1]


def _find(pattern: str, start: int | None, text: str, reached: int, limit: int, threshold: float) -> range | str:
    """Where one segment stands in the trace's skeleton, or the reason why it stands nowhere.

    ``start`` is its place on the chain; without one, it may stand from ``reached`` to ``limit``.
    """
    if not pattern:
        return "empty"
    if start is not None:
        return range(start, start + len(pattern))
    block = longest_common_substring(text[reached:limit], pattern)
    if block.size >= threshold * len(pattern):
        return range(reached + block.start, reached + block.start + block.size)
    return "out_of_order" if pattern in text else "not_found"


def _best_chain(text: str, patterns: Sequence[str]) -> dict[int, int]:
    """Places of the segments that stand in the best chain of exact occurrences: index -> start.

    A chain is in reading order and without overlap. The best one matches the most characters; among these it
    has the most segments that directly follow the one before, then it ends earliest. One bisection for each
    occurrence: ``frontier`` keeps, by increasing end, only chains that beat all that end earlier.
    """
    ends: list[int] = []  # of the frontier's chains, increasing
    frontier: list[tuple[_Score, _Link]] = []  # their scores increase too
    ending_at: dict[int, tuple[_Score, _Link]] = {}  # the best chain that ends exactly here
    for index, pattern in enumerate(patterns):
        size = len(pattern)
        new = []
        for start in _occurrences(text, pattern):
            score, before = _best_before(start, ends, frontier, ending_at)
            new.append((_Score(score.characters + size, score.joints), _Link(index, start, before)))
        for score, link in new:  # only now: a segment can't follow itself
            _enter(ends, frontier, link.start + size, score, link)
            if score > ending_at.get(link.start + size, (_NO_SCORE,))[0]:
                ending_at[link.start + size] = score, link
    return _unroll(frontier[-1][1]) if frontier else {}


def _best_before(
    start: int,
    ends: list[int],
    frontier: list[tuple[_Score, _Link]],
    ending_at: dict[int, tuple[_Score, _Link]],
) -> tuple[_Score, _Link | None]:
    """The best chain that an occurrence at ``start`` can continue, the new joint counted."""
    at = bisect_right(ends, start) - 1
    best: tuple[_Score, _Link | None] = frontier[at] if at >= 0 else (_NO_SCORE, None)
    if start in ending_at:
        score, link = ending_at[start]
        joined = _Score(score.characters, score.joints + 1)
        if joined > best[0]:
            return joined, link
    return best


def _enter(ends: list[int], frontier: list[tuple[_Score, _Link]], end: int, score: _Score, link: _Link) -> None:
    """Put a chain into the frontier, unless a chain that ends no later is as good; drop what it beats."""
    at = bisect_right(ends, end)
    if at and frontier[at - 1][0] >= score:
        return
    first = bisect_left(ends, end)
    last = first
    while last < len(ends) and frontier[last][0] <= score:
        last += 1
    ends[first:last] = [end]
    frontier[first:last] = [(score, link)]


def _unroll(link: _Link | None) -> dict[int, int]:
    places = {}
    while link:
        places[link.segment] = link.start
        link = link.before
    return places


def _occurrences(text: str, pattern: str) -> Iterator[int]:
    """All places of a non-empty pattern, overlapping ones included."""
    at = text.find(pattern) if pattern else -1
    while at >= 0:
        yield at
        at = text.find(pattern, at + 1)
