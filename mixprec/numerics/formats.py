"""Number formats of weights and how they are written: ``w3g64``, ``w4g128_asym``, ``w3``, ``keep``."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final

from mixprec.errors import UserError

MIN_BITS, MAX_BITS = 2, 8
#: ``group_size`` of a format whose groups are whole rows.
WHOLE_ROW = -1

_SYNTAX = re.compile(r"w(?P<bits>[1-9]\d*)(?:g(?P<group>[1-9]\d*))?(?P<asymmetric>_asym)?")
_HELP = (
    f"formats are keep, w3g64 (3 bits, groups of 64), w4g128_asym (asymmetric), w3 (one group per row); "
    f"{MIN_BITS} to {MAX_BITS} bits"
)


class Keep(enum.Enum):
    """The type of KEEP: the model's own weights, not compressed."""

    KEEP = "keep"

    def __str__(self) -> str:
        return self.value


KEEP: Final = Keep.KEEP


@dataclass(frozen=True)
class Format:
    """A group-wise integer format.

    ``bits`` per code, 2 to 8. ``group_size``: input columns that share one scale, or WHOLE_ROW; where it does
    not divide the columns, the last group is smaller. ``symmetric``: the grid needs no zero points.
    """

    bits: int
    group_size: int = WHOLE_ROW
    symmetric: bool = True

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS or (self.group_size < 1 and self.group_size != WHOLE_ROW):
            raise ValueError(f"no such format: {self!r}; {_HELP}")

    def __str__(self) -> str:
        group = "" if self.group_size == WHOLE_ROW else f"g{self.group_size}"
        return f"w{self.bits}{group}{'' if self.symmetric else '_asym'}"

    def groups(self, columns: int) -> int:
        """Groups in a row of ``columns`` weights; a smaller last group counts."""
        return 1 if self.group_size == WHOLE_ROW else -(-columns // self.group_size)


def parse_format(text: str) -> Format | Keep:
    """The format that ``text`` names; ``str`` of a format is its text.

    Raises UserError for anything else, with examples and the valid range.
    """
    if text == str(KEEP):
        return KEEP
    match = _SYNTAX.fullmatch(text)
    if not match or not MIN_BITS <= int(match["bits"]) <= MAX_BITS:
        raise UserError(f"format {text!r} is not known; {_HELP}")
    return Format(
        bits=int(match["bits"]),
        group_size=int(match["group"] or WHOLE_ROW),
        symmetric=match["asymmetric"] is None,
    )
