"""Which process computes which traces."""

from __future__ import annotations

from collections.abc import Sequence


def share(work: Sequence[int], rank: int, count: int) -> list[int]:
    """Numbers of the traces that process ``rank`` of ``count`` computes, in order.

    ``work``: what each trace takes. The largest goes first, each to the process with the least so far, so that every
    process comes to the same split by itself.
    """
    loads = [0] * count
    mine = []
    for number in sorted(range(len(work)), key=lambda number: (-work[number], number)):
        least = loads.index(min(loads))
        loads[least] += work[number]
        if least == rank:
            mine.append(number)
    return sorted(mine)
