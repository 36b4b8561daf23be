"""Windows of a stream of tokens: where they lie, which are drawn. Pure functions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from mixprec.core import artifacts
from mixprec.models import encoding

#: Share of repeated sequences of eight tokens above which a window is a loop. In WikiText-2's validation split windows
#: of 512 tokens have at most 0.26; in the paper's 120 traces, whose model often gets stuck, 30% have more than half.
LOOP = 0.5
_EIGHT = 8


class Stream(NamedTuple):
    """Tokens (n,) int32 of one source, and their weights (n,) float32, or None where all count the same.

    ``breaks``: positions, in order, that no window may reach across; 0 and n included. ``plain``: weight of the tokens
    that belong in front of every text (BOS), where they are added.
    """

    tokens: Tensor
    weights: Tensor | None
    breaks: Sequence[int]
    plain: float = 1.0


class Window(NamedTuple):
    """Tokens ``start`` to ``end`` of a stream; where they are too few, the encoder's head goes in front."""

    start: int
    end: int


def cut(stream: Stream, length: int, head: Sequence[int]) -> list[Window]:
    """Consecutive windows that make samples of ``length`` tokens, each with ``head`` in front.

    What is left before a break, too short for a window, belongs to none.
    """
    ids = stream.tokens.tolist()
    return [
        Window(start + each.start, start + each.end)
        for start, stop in pairwise(stream.breaks)
        for each in encoding.windows(ids[start:stop], length, head)
        if each.length == length
    ]


def counting(stream: Stream, windows: Sequence[Window]) -> list[Window]:
    """The windows in which some token has a weight above 0."""
    if stream.weights is None:
        return list(windows)
    before = torch.zeros(len(stream.weights) + 1, dtype=torch.int64)
    torch.cumsum(stream.weights > 0, 0, out=before[1:])
    seen = before.tolist()
    return [window for window in windows if seen[window.end] > seen[window.start]]


def looping(stream: Stream, windows: Sequence[Window]) -> list[bool]:
    """Which windows repeat themselves: more than half of their sequences of eight tokens stood in them before."""
    ids = _eights(stream.tokens.long())
    found = []
    for start, end in windows:
        eights = ids[start : end - _EIGHT + 1] if end - start >= _EIGHT else ids[:0]
        found.append(len(torch.unique(eights)) < (1 - LOOP) * len(eights))
    return found


def _eights(tokens: Tensor) -> Tensor:
    """A number (n - 7,) for the eight tokens that begin at each position, equal where they are: by doubling, exact."""
    ids, reach = tokens, 1
    while reach < _EIGHT:
        if len(ids) <= reach:
            return ids[:0]
        pairs = ids[:-reach] * (int(ids.max()) + 1) + ids[reach:]
        ids, reach = torch.unique(pairs, return_inverse=True)[1], 2 * reach
    return ids


def shuffled(count: int, seed: int, purpose: str) -> list[int]:
    """The numbers below ``count`` in an order that ``seed`` and ``purpose`` decide; the same on every machine."""
    generator = random.Random(int(artifacts.fingerprint(seed, purpose), 16))
    # Only random() is promised to stay the same across Python versions, so shuffle by sorting.
    return sorted(range(count), key=lambda _: generator.random())
