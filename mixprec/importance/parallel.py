"""Which process computes which traces."""

from __future__ import annotations

from collections.abc import Sequence


def share(lengths: Sequence[int], rank: int, count: int) -> list[int]:
    """Numbers of the traces that process ``rank`` of ``count`` computes, in order.

    ``lengths``: tokens of each trace. The longest goes first, each to the process with the fewest tokens so far, so
    that every process comes to the same split by itself.
    """
    loads = [0] * count
    mine = []
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        least = loads.index(min(loads))
        loads[least] += lengths[number]
        if least == rank:
            mine.append(number)
    return sorted(mine)
