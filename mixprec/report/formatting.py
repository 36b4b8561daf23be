"""How numbers read in tables, charts and sentences: enough digits to compare, no more."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Stands for a value that was not measured.
ABSENT = "–"


def significant(value: float | None, digits: int = 3) -> str:
    """``value`` with so many significant digits, trailing zeros kept: 0.00123, 1.70, 1,234, 4.21e-5."""
    if value is None or math.isnan(value):
        return ABSENT
    if value == 0 or math.isinf(value):
        return f"{value:.0f}"
    exponent = int(f"{abs(value):.{digits - 1}e}".partition("e")[2])
    if not -4 < exponent < 7:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa}e{int(power)}"
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def interval(bounds: Sequence[float] | None, digits: int = 3) -> str:
    """A confidence interval, ``[low, high]``; empty where there is none or it is a point."""
    if bounds is None or bounds[0] == bounds[1]:
        return ""
    low, high = bounds
    return f"[{significant(low, digits)}, {significant(high, digits)}]"


def bits(value: float | None) -> str:
    """Bits per weight with two decimals: 3.25."""
    return ABSENT if value is None else f"{value:.2f}"


def percent(value: float | None, decimals: int = 1) -> str:
    """A fraction in 0..1 as a percentage: 87.3%."""
    return ABSENT if value is None else f"{100 * value:.{decimals}f}%"


def size(count: int | None) -> str:
    """Bytes in decimal units: 53.2 MB, 4.91 GB."""
    if count is None:
        return ABSENT
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{significant(count / scale)} {unit}"
    return f"{count} bytes"


def integer(count: int | None) -> str:
    """A count with thousands separated: 12,345."""
    return ABSENT if count is None else f"{count:,}"


def plural(count: int, noun: str) -> str:
    """``1 trace``, ``24 traces``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


#: Scorers whose names say less than what they are.
_SCORERS = {"importance": "Importance × weight error"}


def scorer(name: str) -> str:
    """A scorer's name for readers: ``importance`` is the paper's importance times the relative weight error."""
    return _SCORERS.get(name) or words(name)


def words(name: str) -> str:
    """A name from a file as words: ``adding_knowledge`` reads ``Adding knowledge``; formats (``w3g64``) stay."""
    if any(character.isdigit() for character in name):
        return name
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:]
