"""How many of two top lists' members chance alone makes the same: the hypergeometric distribution."""

from __future__ import annotations

from typing import NamedTuple

from scipy.stats import hypergeom


class Chance(NamedTuple):
    """Of two random lists of ``size`` members: their mean overlap, and how likely one at least as large as seen is."""

    size: int
    expected: float
    probability: float


def of_overlap(count: int, top: int, overlap: float) -> Chance:
    """Chance of an ``overlap`` of two lists of the ``top`` (or all, where there are fewer) among ``count`` members."""
    size = min(top, count)
    return Chance(size, size * size / count, float(hypergeom.sf(overlap - 1, count, size, size)))
