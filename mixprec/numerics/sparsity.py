"""How many weights a method zeroes and in which pattern: ``0.5``, ``2:4``. Which ones: masks.py."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from mixprec.core.errors import UserError

_PATTERN = re.compile(r"(?P<kept>[1-9]\d*):(?P<group>[1-9]\d*)")
_NUMBER = re.compile(r"\d*\.?\d+(?:[eE][-+]?\d+)?")
_HELP = "a sparsity is the share of zeros, above 0 and below 1 (0.5), or n:m, n of every m weights kept (2:4)"


@dataclass(frozen=True)
class Sparsity:
    """A share of zeros, in any place or in a pattern.

    ``fraction``: share of weights that become zero, above 0 and below 1. ``pattern``: None, or (n, m) with 0 < n < m:
    of every m consecutive weights along the input dimension n are KEPT and m − n become zero, as hardware's 2:4 is
    read; ``fraction`` is then (m − n)/m. Where m does not divide the width, the last r weights of a row lose
    floor(r (m − n)/m), so that fewer may be zero than ``fraction`` says.
    """

    fraction: float
    pattern: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"no such sparsity: {self!r}; {_HELP}")
        if self.pattern and (self.pattern[0] < 1 or self.fraction != 1 - self.pattern[0] / self.pattern[1]):
            raise ValueError(f"no such sparsity: {self!r}; {_HELP}")

    @classmethod
    def kept_of(cls, kept: int, group: int) -> Sparsity:
        """``kept`` non-zeros of every ``group`` consecutive weights; raises ValueError unless 0 < kept < group."""
        if not 0 < kept < group:
            raise ValueError(f"no such sparsity: {kept}:{group}; {_HELP}")
        return cls(1 - kept / group, (kept, group))

    def __str__(self) -> str:
        return f"{self.pattern[0]}:{self.pattern[1]}" if self.pattern else repr(self.fraction)


def parse_sparsity(value: str | float) -> Sparsity:
    """The sparsity that ``value`` names, a number or a text; ``str`` of a sparsity is its text.

    Raises UserError for anything else, with examples and the valid range.
    """
    text = str(value)
    match = _PATTERN.fullmatch(text)
    if match:
        kept, group = int(match["kept"]), int(match["group"])
        return Sparsity.kept_of(kept, group) if kept < group else _refuse(value)
    number = float(text) if _NUMBER.fullmatch(text) else 0.0
    return Sparsity(number) if 0 < number < 1 else _refuse(value)


def _refuse(value: object) -> NoReturn:
    raise UserError(f"sparsity {value!r} is not known; {_HELP}")


def pattern_zeros(width: int, kept: int, group: int) -> int:
    """Zeros in a group of ``width`` <= ``group`` weights of the pattern kept:group; whole groups lose group − kept."""
    return width * (group - kept) // group
