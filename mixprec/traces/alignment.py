"""The ``aligned`` rule: segments in reading order, so that a repeated sentence maps to its own occurrence.

An annotator copies a trace from beginning to end. The released rule takes each segment for itself and so puts
a repeated sentence at its first occurrence, or into the prompt. Here all segments of a trace are placed
together: of all ways to put exact occurrences in reading order, the one that matches the most characters.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from operator import attrgetter
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


class _Score(NamedTuple):
    """What a chain is worth: matched characters first, then segments that directly follow the one before."""

    characters: int
    joints: int


class _Chain(NamedTuple):
    """Occurrences in reading order: the last, of segment number ``segment``, and the chain ``before`` it."""

    segment: int
    start: int
    end: int
    score: _Score
    before: _Chain | None


_end = attrgetter("end")
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
    frontier: list[_Chain] = []  # ends and scores increase
    ending_at: dict[int, _Chain] = {}  # the best chain that ends exactly here
    for index, pattern in enumerate(patterns):
        new = []
        for start in _occurrences(text, pattern):
            score, before = _best_before(start, frontier, ending_at)
            score = _Score(score.characters + len(pattern), score.joints)
            new.append(_Chain(index, start, start + len(pattern), score, before))
        for chain in new:  # only now: a segment can't follow itself
            _enter(frontier, chain)
            if chain.end not in ending_at or chain.score > ending_at[chain.end].score:
                ending_at[chain.end] = chain
    return _unroll(frontier[-1]) if frontier else {}


def _best_before(start: int, frontier: list[_Chain], ending_at: dict[int, _Chain]) -> tuple[_Score, _Chain | None]:
    """The best chain that an occurrence at ``start`` can continue, and its score, the new joint counted."""
    at = bisect_right(frontier, start, key=_end)
    score, before = (frontier[at - 1].score, frontier[at - 1]) if at else (_NO_SCORE, None)
    if touching := ending_at.get(start):
        joined = touching.score._replace(joints=touching.score.joints + 1)
        if joined > score:
            return joined, touching
    return score, before


def _enter(frontier: list[_Chain], chain: _Chain) -> None:
    """Put a chain into the frontier, unless a chain that ends no later is as good; drop what it beats."""
    at = bisect_right(frontier, chain.end, key=_end)
    if at and frontier[at - 1].score >= chain.score:
        return
    first = last = bisect_left(frontier, chain.end, key=_end)
    while last < len(frontier) and frontier[last].score <= chain.score:
        last += 1
    frontier[first:last] = [chain]


def _unroll(chain: _Chain | None) -> dict[int, int]:
    places = {}
    while chain:
        places[chain.segment] = chain.start
        chain = chain.before
    return places


def _occurrences(text: str, pattern: str) -> Iterator[int]:
    """All places of a non-empty pattern, overlapping ones included."""
    at = text.find(pattern) if pattern else -1
    while at >= 0:
        yield at
        at = text.find(pattern, at + 1)
