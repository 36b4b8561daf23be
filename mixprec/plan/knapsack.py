"""The multiple-choice knapsack, solved exactly: one choice for each unit, least damage, total cost within a limit.

The Lagrangian of the limit bounds every solution from below, and a rounded one gives a first solution. A choice whose
reduced cost alone exceeds the gap between the two is in no optimal solution and goes. What is left is solved by dynamic
programming over the solutions of some units that no other one beats in both cost and damage, less those that even the
bound for all other units can't make better than the best known (Pisinger, European Journal of Operational Research 83,
1995). Costs are integers, so the limit is kept exactly, however large they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Choices, besides each unit's best, of the first and smaller problem, whose solution all but closes the gap.
_FIRST_CORE = 30
#: Multipliers, relative to the best one, whose bounds prune: those away from 1 see what lies far from the limit.
_PRICES = np.array([0.0, 0.5, 0.8, 0.95, 1.0, 1.05, 1.25, 2.0, 4.0, 16.0])
#: Partial solutions that are better by less than this share of the gap differ by rounding only.
_ROUNDING = 1e-13
#: Partial solutions that are kept at most, of all units together. Problems of models stay far below; where there are
#: more, which takes damages that are linear in costs and so hardly any gap, they are thinned, and the solution is the
#: best of those that stayed.
_STATES = 4_000_000

_Choices = NDArray[np.int64]


class Unit(NamedTuple):
    """``costs`` (choices,) integers >= 0 and ``damages`` (choices,) >= 0 of what one unit may become."""

    costs: tuple[int, ...]
    damages: tuple[float, ...]


class Infeasible(ValueError):
    """The cheapest choices together cost ``least``, more than the limit."""

    def __init__(self, least: int) -> None:
        super().__init__(f"the cheapest choices cost {least}")
        self.least = least


class _Relaxed(NamedTuple):
    """The problem at the Lagrangian's best ``multiplier``, relative to the ``best`` choices (units,) there.

    ``costs`` and ``damages`` (units, choices) are what a choice has more than its unit's best one; ``reduced`` their
    sum, the cost priced, which is at least 0. ``room``: what the best choices leave of the limit. Choices that are not
    there damage infinitely much.
    """

    best: _Choices
    costs: NDArray[np.int64]
    damages: NDArray[np.float64]
    reduced: NDArray[np.float64]
    multiplier: float
    room: int

    def damage(self, chosen: _Choices) -> float:
        """What a solution damages more than the best choices do; less than 0 where it spends the room they leave."""
        return math.fsum(self.damages[np.arange(len(chosen)), chosen])

    def gap(self, chosen: _Choices) -> float:
        """By how much a solution is worse than the bound."""
        return self.damage(chosen) + self.multiplier * self.room


def solve(units: Sequence[Unit], limit: int) -> list[int]:
    """The index of each unit's choice: least summed damage among those that cost at most ``limit`` together.

    Ties: a unit takes the cheapest of its choices of equal damage, of those the first; of units that are alike in
    costs and damages the earlier ones take the dearer choices.

    Raises Infeasible where nothing fits, ValueError for costs or damages that are negative or not finite.
    """
    for unit in units:
        fine = len(unit.costs) == len(unit.damages) > 0 and min(unit.costs) >= 0
        if not fine or not all(math.isfinite(damage) and damage >= 0 for damage in unit.damages):
            raise ValueError(f"no unit of a knapsack: {unit}")
    least = sum(min(unit.costs) for unit in units)
    if least > limit:
        raise Infeasible(least)
    useful = [_undominated(unit) for unit in units]
    best = [kept[-1] for kept in useful]
    if sum(unit.costs[index] for unit, index in zip(units, best, strict=True)) <= limit:
        return _ordered(units, best)
    chosen = _exact(_relax(units, useful, limit))
    return _ordered(units, [kept[int(index)] for kept, index in zip(useful, chosen, strict=True)])


def _undominated(unit: Unit) -> list[int]:
    """Choices that no other one beats in both cost and damage, from the cheapest to the dearest."""
    kept: list[int] = []
    for index in sorted(range(len(unit.costs)), key=lambda i: (unit.costs[i], unit.damages[i], i)):
        if not kept or unit.damages[index] < unit.damages[kept[-1]]:
            kept.append(index)
    return kept


def _relax(units: Sequence[Unit], useful: Sequence[Sequence[int]], limit: int) -> _Relaxed:
    """The problem at the multiplier where the best choices just fit; the next dearer ones would not."""
    width = max(map(len, useful))
    costs = np.zeros((len(units), width), dtype=np.int64)
    damages = np.full((len(units), width), np.inf)
    steps = []
    for row, (unit, kept) in enumerate(zip(units, useful, strict=True)):
        costs[row, : len(kept)] = [unit.costs[index] for index in kept]
        damages[row, : len(kept)] = [unit.damages[index] for index in kept]
        hull = _hull(costs[row, : len(kept)], damages[row, : len(kept)])
        for before, after in pairwise(hull):
            more = int(costs[row, after] - costs[row, before])
            steps.append((float(damages[row, before] - damages[row, after]) / more, row, after, more))
    best, room, multiplier = np.zeros(len(units), dtype=np.int64), limit - int(costs[:, 0].sum()), 0.0
    for slope, row, after, more in sorted(steps, key=lambda step: (-step[0], step[1], step[2])):
        if more > room:
            multiplier = slope
            break
        best[row], room = after, room - more
    rows = np.arange(len(units))[:, None]
    costs = np.where(np.isfinite(damages), costs - costs[rows, best[:, None]], 0)
    damages = damages - damages[rows, best[:, None]]
    reduced = np.maximum(damages + multiplier * costs, 0)  # below 0 by rounding only
    return _Relaxed(best, costs, damages, reduced, multiplier, room)


def _hull(costs: NDArray[np.int64], damages: NDArray[np.float64]) -> list[int]:
    """Of choices from the cheapest to the dearest those on the lower convex hull."""
    kept: list[int] = []
    for index in range(len(costs)):
        while len(kept) > 1 and _slope(costs, damages, kept[-2], kept[-1]) <= _slope(costs, damages, kept[-1], index):
            kept.pop()
        kept.append(index)
    return kept


def _slope(costs: NDArray[np.int64], damages: NDArray[np.float64], first: int, second: int) -> float:
    """Damage saved per cost."""
    return float(damages[first] - damages[second]) / float(costs[second] - costs[first])


def _filled(relaxed: _Relaxed) -> _Choices:
    """The best choices with what is left of the limit spent, each time on what saves most damage for its cost."""
    chosen, rows, room = relaxed.best.copy(), np.arange(len(relaxed.best)), relaxed.room
    while True:
        more = relaxed.costs - relaxed.costs[rows, chosen][:, None]
        saves = relaxed.damages[rows, chosen][:, None] - relaxed.damages
        fitting = (more > 0) & (more <= room) & (saves > 0)
        if not fitting.any():
            return chosen
        value = np.where(fitting, saves / np.maximum(more, 1), -1.0)
        row, column = np.unravel_index(int(value.argmax()), value.shape)
        chosen[row], room = column, room - int(more[row, column])


def _exact(relaxed: _Relaxed) -> _Choices:
    """The optimum: solved on a small core for a better start, then on all choices that may be in an optimum."""
    start = _filled(relaxed)
    ranked = np.sort(relaxed.reduced[np.isfinite(relaxed.reduced)])
    position = len(start) + _FIRST_CORE
    if position < len(ranked):
        start = _on_core(relaxed, start, min(float(ranked[position]), relaxed.gap(start)))
    return _on_core(relaxed, start, relaxed.gap(start))


def _on_core(relaxed: _Relaxed, start: _Choices, worst: float) -> _Choices:
    """The best solution among those of choices with reduced costs up to ``worst``, or ``start`` where that is best."""
    gap = relaxed.gap(start)
    allowed = relaxed.reduced <= worst * (1 + 1e-9)
    open_rows = np.flatnonzero(allowed.sum(1) > 1)
    if not len(open_rows) or gap <= 0:
        return start
    # Units that can change for the least first: their solutions lower the gap early.
    second = np.sort(np.where(allowed, relaxed.reduced, np.inf)[open_rows], axis=1)[:, 1]
    order = open_rows[np.argsort(second, kind="stable")]
    return _combined(relaxed, start, order, allowed)


def _combined(relaxed: _Relaxed, start: _Choices, order: _Choices, allowed: NDArray[np.bool_]) -> _Choices:
    """The best solution of the ``allowed`` choices of the units ``order``, all others having their best choice.

    Partial solutions are those of the units before; one is kept where its damage is lower than that of all that cost
    no more, and where the bound for the units behind can still make it better than the best known solution.
    """
    prices = _PRICES * relaxed.multiplier
    room, least, apart = relaxed.room, relaxed.damage(start), _ROUNDING * relaxed.gap(start)
    damages = np.where(allowed, relaxed.damages, np.inf)[order]
    # What the units from each one on can do at best, at each price, and the least that they cost.
    ahead = (damages[:, :, None] + prices * relaxed.costs[order][:, :, None]).min(1)
    ahead = np.append(np.cumsum(ahead[::-1], 0)[::-1], np.zeros((1, len(prices))), 0)
    cheap = np.where(allowed[order], relaxed.costs[order], 0).min(1)
    cheap = np.append(np.cumsum(cheap[::-1])[::-1], 0)
    cost, damage = np.zeros(1, dtype=np.int64), np.zeros(1)
    steps: list[tuple[NDArray[np.int32], NDArray[np.int16]]] = []
    most, found = _STATES // len(order), None
    for number, row in enumerate(order):
        columns = np.flatnonzero(allowed[row])
        costs = (cost + relaxed.costs[row, columns][:, None]).ravel()
        sums = (damage + relaxed.damages[row, columns][:, None]).ravel()
        bound = (sums[:, None] + prices * (costs - room)[:, None] + ahead[number + 1]).max(1)
        promising = np.flatnonzero((bound < least) & (costs + cheap[number + 1] <= room))
        promising = promising[np.lexsort((sums[promising], costs[promising]))]
        if not len(promising):
            break
        promising = promising[_lower(sums[promising], apart)]
        if len(promising) > most:
            promising = promising[np.linspace(0, len(promising) - 1, most).astype(np.int64)]
        steps.append(((promising % len(cost)).astype(np.int32), columns[promising // len(cost)].astype(np.int16)))
        cost, damage = costs[promising], sums[promising]
        fitting = int(np.searchsorted(cost, room, side="right"))
        if fitting and damage[fitting - 1] < least:  # the dearest that fits damages least
            found, least = (number, fitting - 1), float(damage[fitting - 1])
    if found is None:
        return start
    number, state = found
    chosen = relaxed.best.copy()
    for row, (parents, taken) in zip(order[number::-1], steps[number::-1], strict=True):
        chosen[row], state = taken[state], int(parents[state])
    return chosen


def _lower(damages: NDArray[np.float64], apart: float) -> _Choices:
    """Which of ``damages`` are lower than all before, by more than about ``apart``; the first always."""
    before = np.append(np.inf, np.minimum.accumulate(damages)[:-1])
    records: _Choices = np.flatnonzero(damages < before)
    if apart > 0:
        steps = np.floor((damages[records[0]] - damages[records]) / apart)
        records = records[np.append(True, steps[1:] > steps[:-1])]
    return records


def _ordered(units: Sequence[Unit], chosen: Sequence[int]) -> list[int]:
    """Of units that are alike the earlier ones get the dearer choices; the sums stay the same."""
    alike: dict[Unit, list[int]] = {}
    for position, unit in enumerate(units):
        alike.setdefault(unit, []).append(position)
    result = list(chosen)
    for unit, positions in alike.items():
        ranked = sorted((-unit.costs[chosen[position]], chosen[position]) for position in positions)
        for position, (_, index) in zip(positions, ranked, strict=True):
            result[position] = index
    return result
