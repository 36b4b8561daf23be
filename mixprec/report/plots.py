"""Charts for a page: intervals in rows, and points on two axes, as places in percent that a template draws."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from matplotlib.ticker import LogLocator, MaxNLocator

#: Ratio of an axis' ends from which it is labelled at powers of ten alone.
_WIDE = 60
#: Labels of a logarithmic axis, at most, where these are powers of ten.
_TICKS = 5


class Tick(NamedTuple):
    """A label of an axis, at so many percent of it."""

    at: float
    text: str


class Axis(NamedTuple):
    """From ``low`` to ``high``, both not on the axis' very ends; logarithmic or not."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Percent along the axis; what lies beyond an end is put there."""
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, max(value, self._floor)))
        return round(min(max(100 * (value - low) / (high - low), 0.0), 100.0), 2)

    @property
    def _floor(self) -> float:
        return self.low if self.log else -math.inf

    @property
    def ticks(self) -> list[Tick]:
        """Round values, about five."""
        if not self.log or self.high / self.low < 4:
            values = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        else:
            subs = (1, 2, 5) if self.high / self.low < _WIDE else (1,)
            values = LogLocator(subs=subs, numticks=_TICKS).tick_values(self.low, self.high)
        inside = (float(value) for value in values if self.low <= value <= self.high)
        return [Tick(self.at(value), _text(value)) for value in inside]


def _text(value: float) -> str:
    """A round value, short: 0.25, 1e4."""
    mantissa, _, power = f"{value:.3g}".partition("e")
    return f"{mantissa}e{int(power)}" if power else mantissa


def axis(values: Iterable[float], log: bool = False) -> Axis:
    """An axis around all ``values`` with some room; a logarithmic one takes those above 0."""
    known = [value for value in values if math.isfinite(value) and (not log or value > 0)]
    low, high = min(known), max(known)
    if log:
        room = max((high / low) ** 0.06, 1.08)
        return Axis(low / room, high * room, True)
    spread = high - low
    # Values that differ by rounding alone have no room between them.
    room = 0.06 * spread if spread > 1e-9 * max(abs(low), abs(high)) else 0.5 * abs(high) or 1.0
    return Axis(low - room, high + room)


class Bar(NamedTuple):
    """A point at ``at`` percent with its interval, ``low`` to ``high``; ``hollow``: its second kind of point."""

    at: float
    low: float | None
    high: float | None
    tip: str
    hollow: bool = False


class Row(NamedTuple):
    """What one name has on an axis, and what stands at the right end."""

    name: str
    bars: Sequence[Bar]
    note: str = ""


class Rows(NamedTuple):
    """A group of rows on an axis of their own. ``label``: of the axis."""

    title: str
    rows: Sequence[Row]
    ticks: Sequence[Tick]
    label: str = ""
    note: str = ""


class Point(NamedTuple):
    """At (``x``, ``y``) percent from the left and from above; ``low``, ``high``: the ends of its interval in y.

    ``kind`` chooses the mark. ``name`` stands beside it, from ``anchor`` on, ``dy`` pixels lower.
    """

    x: float
    y: float
    kind: str
    tip: str
    low: float | None = None
    high: float | None = None
    name: str = ""
    anchor: str = "start"
    dy: float = 0.0


class Points(NamedTuple):
    """A plot; ``lines``: (x1, y1, x2, y2) in percent; ``kinds``: kind -> what it is called, of those that there are."""

    title: str
    points: Sequence[Point]
    x: Sequence[Tick]
    y: Sequence[Tick]
    x_label: str
    y_label: str
    alt: str
    lines: Sequence[tuple[float, float, float, float]] = ()
    kinds: Sequence[tuple[str, str]] = ()


def labelled(points: Sequence[Point], width: float, height: float) -> list[Point]:
    """The points with the places of their names, such that names don't lie on one another; some may have to go.

    ``width``, ``height``: pixels of the plot that is reckoned with. Points that come first are named first.
    """
    places = [(point.x * width / 100, point.y * height / 100) for point in points]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    result = []
    for point, (x, y) in zip(points, places, strict=True):
        long = 6.6 * len(point.name)
        placed = point._replace(name="")
        for anchor, dy in (("start", 4), ("end", 4), ("start", -8), ("end", -8), ("start", 16), ("end", 16)):
            left = x + 10 if anchor == "start" else x - 10 - long
            box = (left, y + dy - 11, left + long, y + dy + 3)
            if point.name and left >= 0 and box[2] <= width and not any(_meet(box, other) for other in taken):
                taken.append(box)
                placed = point._replace(anchor=anchor, dy=dy)
                break
        result.append(placed)
    return result


def _meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
