"""The multiple-choice knapsack, solved exactly: one choice for each unit, least damage, total cost within a limit.

The Lagrangian of the limit bounds every solution from below, and a rounded one gives a first solution. A choice whose
reduced cost alone exceeds the gap between the two is in no optimal solution and goes; what is left, a few dozen
choices, is solved by HiGHS (scipy.optimize.milp) to optimality. Costs are integers, so the limit is kept exactly.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

#: Halvings of the multiplier's interval: far below the spacing of its breakpoints.
_HALVINGS = 100
#: Choices, besides each unit's best, of the first and smaller problem, whose solution all but closes the gap.
_FIRST_CORE = 120
#: What rounding may do to a bound, relative to the damage that it is a sum of.
_ROUNDING = 1e-13

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
    """The problem at the Lagrangian's best ``multiplier``. ``reduced`` (units, choices): by how much a choice is worse
    than its unit's best, its cost priced; a solution is worse than the bound by its reduced costs and by the price of
    what it leaves of the limit. Choices that are not there cost and damage infinitely much."""

    costs: NDArray[np.int64]
    damages: NDArray[np.float64]
    reduced: NDArray[np.float64]
    multiplier: float
    limit: int

    def cost(self, chosen: _Choices) -> int:
        """What a solution costs."""
        return int(self.costs[np.arange(len(chosen)), chosen].sum())

    def gap(self, chosen: _Choices) -> float:
        """By how much a solution is worse than the bound."""
        worse = math.fsum(self.reduced[np.arange(len(chosen)), chosen])
        return worse + self.multiplier * (self.limit - self.cost(chosen))


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
    chosen = _exact(*_relax(units, useful, limit))
    return _ordered(units, [kept[int(index)] for kept, index in zip(useful, chosen, strict=True)])


def _undominated(unit: Unit) -> list[int]:
    """Choices that no other one beats in both cost and damage, from the cheapest to the dearest."""
    kept: list[int] = []
    for index in sorted(range(len(unit.costs)), key=lambda i: (unit.costs[i], unit.damages[i], i)):
        if not kept or unit.damages[index] < unit.damages[kept[-1]]:
            kept.append(index)
    return kept


def _relax(units: Sequence[Unit], useful: Sequence[Sequence[int]], limit: int) -> tuple[_Relaxed, _Choices]:
    """The problem at the best multiplier found, and the best choices there, which fit."""
    width = max(map(len, useful))
    costs = np.zeros((len(units), width), dtype=np.int64)
    damages = np.full((len(units), width), np.inf)
    for row, (unit, kept) in enumerate(zip(units, useful, strict=True)):
        costs[row, : len(kept)] = [unit.costs[index] for index in kept]
        damages[row, : len(kept)] = [unit.damages[index] for index in kept]
    rows = np.arange(len(units))

    def at(multiplier: float) -> _Choices:
        chosen: _Choices = (damages + multiplier * costs).argmin(1)
        return chosen

    def fits(multiplier: float) -> bool:
        return int(costs[rows, at(multiplier)].sum()) <= limit

    low, high = 0.0, 1.0
    while not fits(high):
        low, high = high, 4 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    priced = damages + high * costs
    relaxed = _Relaxed(costs, damages, priced - priced.min(1, keepdims=True), high, limit)
    return relaxed, _filled(relaxed, at(high))


def _filled(relaxed: _Relaxed, chosen: _Choices) -> _Choices:
    """``chosen`` with what is left of the limit spent, each time on what saves most damage for its cost."""
    chosen, rows = chosen.copy(), np.arange(len(chosen))
    while True:
        more = relaxed.costs - relaxed.costs[rows, chosen][:, None]
        saves = relaxed.damages[rows, chosen][:, None] - relaxed.damages
        fitting = (more > 0) & (more <= relaxed.limit - relaxed.cost(chosen)) & (saves > 0)
        if not fitting.any():
            return chosen
        value = np.where(fitting, saves / np.maximum(more, 1), -1.0)
        row, column = np.unravel_index(int(value.argmax()), value.shape)
        chosen[row] = column


def _exact(relaxed: _Relaxed, start: _Choices) -> _Choices:
    """The optimum: solved on a small core for a better start, then on all choices that may be in an optimum."""
    ranked = np.sort(relaxed.reduced[np.isfinite(relaxed.reduced)])
    position = len(start) + _FIRST_CORE
    if position < len(ranked):
        start = _on_core(relaxed, start, min(float(ranked[position]), relaxed.gap(start)))
    scale = float(np.abs(relaxed.damages[np.isfinite(relaxed.damages)]).max()) * len(start)
    return _on_core(relaxed, start, relaxed.gap(start) + _ROUNDING * scale)


def _on_core(relaxed: _Relaxed, start: _Choices, worst: float) -> _Choices:
    """The best solution among those of choices with reduced costs up to ``worst``, or ``start`` where that is best."""
    allowed = relaxed.reduced <= worst
    allowed[np.arange(len(start)), start] = True
    open_rows = np.flatnonzero(allowed.sum(1) > 1)
    gap = relaxed.gap(start)
    if not len(open_rows) or gap <= 0:
        return start
    rows, columns = np.nonzero(allowed[open_rows])
    where = open_rows[rows]
    costs = relaxed.costs[where, columns]
    base = np.array([costs[rows == row].min() for row in range(len(open_rows))])
    closed = np.setdiff1d(np.arange(len(start)), open_rows)
    room = relaxed.limit - int(relaxed.costs[closed, start[closed]].sum()) - int(base.sum())
    extra = costs - base[rows]
    unit = math.gcd(*(int(cost) for cost in extra)) or 1
    # HiGHS stops at an absolute gap of 1e-6: a thousand for the whole gap makes that a billionth of it.
    values = 1000 / gap * np.append(relaxed.reduced[where, columns], relaxed.multiplier * unit)
    choose = csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=(len(open_rows), len(rows) + 1))
    spend = np.append(extra // unit, 1.0)[None]
    # The last variable is what is left of the room; the multiplier is its price.
    with _silence():
        found = milp(
            values,
            integrality=np.append(np.ones(len(rows)), 0),
            bounds=Bounds(0, np.append(np.ones(len(rows)), np.inf)),
            constraints=[LinearConstraint(choose, 1, 1), LinearConstraint(spend, room // unit, room // unit)],
            options={"mip_rel_gap": 0},
        )
    if found.x is None:
        raise RuntimeError(f"HiGHS: {found.message}")
    better = start.copy()
    for row, column, taken in zip(where, columns, found.x[:-1] > 0.5, strict=True):
        if taken:
            better[row] = column
    fits = relaxed.cost(better) <= relaxed.limit
    return better if fits and relaxed.gap(better) < gap else start


@contextmanager
def _silence() -> Iterator[None]:
    """HiGHS writes some notices to the process's standard output, whatever it is told; a plan may go there."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


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
