"""Number formats of weights and how they are written: ``w3g64``, ``w4g128_asym``, ``w3``, ``any4g64``, ``keep``."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final

from mixprec.errors import UserError

MIN_BITS, MAX_BITS = 2, 8
#: Code books of more bits would take more space than they save in error.
MAX_CODEBOOK_BITS = 4
#: ``group_size`` of a format whose groups are whole rows.
WHOLE_ROW = -1

_SYNTAX = re.compile(r"(?P<kind>w|any)(?P<bits>[1-9]\d*)(?:g(?P<group>[1-9]\d*))?(?P<asymmetric>_asym)?")
_HELP = (
    f"formats are keep, w3g64 (3 bits, groups of 64), w4g128_asym (asymmetric), w3 (one group per row), "
    f"{MIN_BITS} to {MAX_BITS} bits; any4g64 (a learned code book per row), {MIN_BITS} to {MAX_CODEBOOK_BITS} bits"
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
        _check(self, self.bits, MAX_BITS, self.group_size)

    def __str__(self) -> str:
        return f"w{self.bits}{_group_text(self.group_size)}{'' if self.symmetric else '_asym'}"

    def groups(self, columns: int) -> int:
        """Groups in a row of ``columns`` weights; a smaller last group counts."""
        return _groups(self.group_size, columns)


@dataclass(frozen=True)
class CodebookFormat:
    """Codes that index a learned code book of 2^bits values, one for each row (arXiv 2507.04610, any4 and any3).

    ``bits`` per code, 2 to 4. ``group_size``: input columns that share one scale and one offset, or WHOLE_ROW;
    where it does not divide the columns, the last group is smaller.
    """

    bits: int
    group_size: int = WHOLE_ROW

    def __post_init__(self) -> None:
        _check(self, self.bits, MAX_CODEBOOK_BITS, self.group_size)

    def __str__(self) -> str:
        return f"any{self.bits}{_group_text(self.group_size)}"

    def groups(self, columns: int) -> int:
        """Groups in a row of ``columns`` weights; a smaller last group counts."""
        return _groups(self.group_size, columns)


#: What a plan may give a module.
AnyFormat = Format | CodebookFormat | Keep


def _check(format: object, bits: int, most: int, group_size: int) -> None:
    if not MIN_BITS <= bits <= most or (group_size < 1 and group_size != WHOLE_ROW):
        raise ValueError(f"no such format: {format!r}; {_HELP}")


def _group_text(group_size: int) -> str:
    return "" if group_size == WHOLE_ROW else f"g{group_size}"


def _groups(group_size: int, columns: int) -> int:
    return 1 if group_size == WHOLE_ROW else -(-columns // group_size)


def parse_format(text: str) -> AnyFormat:
    """The format that ``text`` names; ``str`` of a format is its text.

    Raises UserError for anything else, with examples and the valid range.
    """
    if text == str(KEEP):
        return KEEP
    match = _SYNTAX.fullmatch(text)
    if not match:
        raise UserError(f"format {text!r} is not known; {_HELP}")
    bits, group_size, asymmetric = int(match["bits"]), int(match["group"] or WHOLE_ROW), bool(match["asymmetric"])
    if match["kind"] == "any" and asymmetric:
        raise UserError(f"format {text!r} is not known: code books have offsets anyway, leave out _asym; {_HELP}")
    try:
        return CodebookFormat(bits, group_size) if match["kind"] == "any" else Format(bits, group_size, not asymmetric)
    except ValueError:
        raise UserError(f"format {text!r} is not known; {_HELP}") from None
