"""Number formats of weights and how they are written: ``w3g64``, ``w4g128_asym``, ``any4g64``, ``q4_k``, ``keep``,
``drop``."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from mixprec.core.errors import UserError

MIN_BITS, MAX_BITS = 2, 8
#: Code books of more bits would take more space than they save in error.
MAX_CODEBOOK_BITS = 4
#: ``group_size`` of a format whose groups are whole rows.
WHOLE_ROW = -1
#: Bits of a weight that is kept, of a scale, of an offset and of an entry of a code book.
WORD = 16

_SYNTAX = re.compile(r"(?P<kind>w|any)(?P<bits>[1-9]\d*)(?:g(?P<group>[1-9]\d*))?(?P<zero>_asym|_affine)?")
_HELP = (
    "formats are keep, w3g64 (3 bits, groups of 64), w4g128_asym (asymmetric), w4g64_affine (with offsets, as in MLX), "
    f"w3 (one group per row), {MIN_BITS} to {MAX_BITS} bits; any4g64 (a learned code book per row), {MIN_BITS} to "
    f"{MAX_CODEBOOK_BITS} bits; "
    "q4_k, iq2_xxs … (llama.cpp's types); drop (a routed expert that is left out)"
)


class GgmlLayout(NamedTuple):
    """How a type of llama.cpp stores a row: blocks of so many weights in so many bytes.

    ``code_bits`` of these are codes and signs, the others scales and minima.
    """

    block: int
    bytes: int
    code_bits: int


#: Type of llama.cpp -> layout (ggml-common.h).
GGML: Final[dict[str, GgmlLayout]] = {
    "iq1_s": GgmlLayout(256, 50, 352),
    "iq1_m": GgmlLayout(256, 56, 352),
    "tq1_0": GgmlLayout(256, 54, 416),
    "iq2_xxs": GgmlLayout(256, 66, 480),
    "tq2_0": GgmlLayout(256, 66, 512),
    "iq2_xs": GgmlLayout(256, 74, 512),
    "iq2_s": GgmlLayout(256, 82, 576),
    "q2_k": GgmlLayout(256, 84, 512),
    "iq3_xxs": GgmlLayout(256, 98, 736),
    "q3_k": GgmlLayout(256, 110, 768),
    "iq3_s": GgmlLayout(256, 110, 832),
    "iq4_xs": GgmlLayout(256, 136, 1024),
    "mxfp4": GgmlLayout(32, 17, 128),
    "iq4_nl": GgmlLayout(32, 18, 128),
    "q4_0": GgmlLayout(32, 18, 128),
    "q4_k": GgmlLayout(256, 144, 1024),
    "q4_1": GgmlLayout(32, 20, 128),
    "q5_0": GgmlLayout(32, 22, 160),
    "q5_k": GgmlLayout(256, 176, 1280),
    "q5_1": GgmlLayout(32, 24, 160),
    "q6_k": GgmlLayout(256, 210, 1536),
    "q8_0": GgmlLayout(32, 34, 256),
}
#: Types that llama.cpp refuses to make without an importance of inputs.
_NEED_IMPORTANCE: Final = frozenset({"iq1_s", "iq2_xxs", "iq2_xs"})
#: Type -> what llama.cpp takes where a row can't be divided into its blocks.
_FALLBACKS: Final[dict[str, str]] = {
    "tq1_0": "q4_0",
    "tq2_0": "q4_0",
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "q2_k"), "iq4_nl"),
    **dict.fromkeys(("iq3_xxs", "iq3_s", "q3_k", "iq4_xs"), "iq4_nl"),
}


class Taken(NamedTuple):
    """Bits that a weight takes. ``zeros``: zero points, or the offsets beside a code book."""

    codes: int
    scales: int = 0
    zeros: int = 0
    codebooks: int = 0


class Keep(enum.Enum):
    """The type of KEEP: the model's own weights, not compressed."""

    KEEP = "keep"

    def __str__(self) -> str:
        return self.value

    def takes(self, rows: int, columns: int) -> Taken:
        """What a weight (rows, columns) takes."""
        return Taken(rows * columns * WORD)


KEEP: Final = Keep.KEEP


class Drop(enum.Enum):
    """The type of DROP: the module is left out, with the whole routed expert that it belongs to."""

    DROP = "drop"

    def __str__(self) -> str:
        return self.value

    def takes(self, rows: int, columns: int) -> Taken:
        """Nothing."""
        return Taken(0)


DROP: Final = Drop.DROP


@dataclass(frozen=True)
class _Grouped:
    """What formats have in common whose scales are those of groups of columns."""

    bits: int
    group_size: int = WHOLE_ROW

    def width(self, columns: int) -> int:
        """Columns of a group in a row of ``columns`` weights; the last group may have less."""
        return columns if self.group_size == WHOLE_ROW else min(self.group_size, columns)

    def groups(self, columns: int) -> int:
        """Groups in a row of ``columns`` weights; a smaller last group counts."""
        return -(-columns // self.width(columns))


@dataclass(frozen=True)
class Format(_Grouped):
    """A group-wise integer format.

    ``bits`` per code, 2 to 8. ``group_size``: input columns that share one scale, or WHOLE_ROW; where it does
    not divide the columns, the last group is smaller. ``symmetric``: the grid needs no zero points.
    """

    symmetric: bool = True

    def __post_init__(self) -> None:
        _check(self, self.bits, MAX_BITS, self.group_size)

    def __str__(self) -> str:
        return f"w{self.bits}{_group_text(self.group_size)}{'' if self.symmetric else '_asym'}"

    def takes(self, rows: int, columns: int) -> Taken:
        """What a weight (rows, columns) takes."""
        groups = rows * self.groups(columns)
        return Taken(rows * columns * self.bits, groups * WORD, 0 if self.symmetric else groups * self.bits)


@dataclass(frozen=True)
class AffineFormat(_Grouped):
    """A group-wise integer format whose groups have an offset of 16 bits each in the place of a zero point.

    ``bits`` per code, 2 to 8; ``group_size``: as in Format.
    """

    def __post_init__(self) -> None:
        _check(self, self.bits, MAX_BITS, self.group_size)

    def __str__(self) -> str:
        return f"w{self.bits}{_group_text(self.group_size)}_affine"

    def takes(self, rows: int, columns: int) -> Taken:
        """What a weight (rows, columns) takes."""
        groups = rows * self.groups(columns) * WORD
        return Taken(rows * columns * self.bits, groups, groups)


@dataclass(frozen=True)
class CodebookFormat(_Grouped):
    """Codes that index a learned code book of 2^bits values, one for each row (arXiv 2507.04610, any4 and any3).

    ``bits`` per code, 2 to 4. ``group_size``: input columns that share one scale and one offset, or WHOLE_ROW;
    where it does not divide the columns, the last group is smaller.
    """

    def __post_init__(self) -> None:
        _check(self, self.bits, MAX_CODEBOOK_BITS, self.group_size)

    def __str__(self) -> str:
        return f"any{self.bits}{_group_text(self.group_size)}"

    def takes(self, rows: int, columns: int) -> Taken:
        """What a weight (rows, columns) takes."""
        groups = rows * self.groups(columns) * WORD
        return Taken(rows * columns * self.bits, groups, groups, rows * 2**self.bits * WORD)


@dataclass(frozen=True)
class GgmlFormat:
    """A type of llama.cpp, by its name in GGML."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in GGML:
            raise ValueError(f"no such type of llama.cpp: {self.name}; there are {', '.join(GGML)}")

    def __str__(self) -> str:
        return self.name

    @property
    def layout(self) -> GgmlLayout:
        """How rows are stored."""
        return GGML[self.name]

    @property
    def bits(self) -> float:
        """Bits per weight of the codes and signs."""
        return self.layout.code_bits / self.layout.block

    @property
    def effective_bits(self) -> float:
        """Bits per weight, scales included."""
        return self.layout.bytes * 8 / self.layout.block

    @property
    def needs_importance(self) -> bool:
        """Whether llama.cpp makes it only with an importance of the inputs, so with calibration data."""
        return self.name in _NEED_IMPORTANCE

    def fits(self, columns: int) -> bool:
        """Whether a row of ``columns`` weights can be divided into blocks."""
        return columns % self.layout.block == 0

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row that fits."""
        return columns // self.layout.block * self.layout.bytes

    def takes(self, rows: int, columns: int) -> Taken:
        """What a weight (rows, columns) that fits takes; all that is neither codes nor signs counts as scales."""
        codes = rows * columns // self.layout.block * self.layout.code_bits
        return Taken(codes, rows * self.row_bytes(columns) * 8 - codes)


#: What a plan may give a module.
AnyFormat = Format | AffineFormat | CodebookFormat | GgmlFormat | Keep | Drop
#: The kinds whose codes are whole numbers on grids of groups.
GridFormat = Format | AffineFormat


def fitting(format: AnyFormat, columns: int) -> AnyFormat:
    """``format``, or what llama.cpp's quantizer takes for rows of ``columns`` weights that a type of its doesn't fit.

    Where nothing fits, llama.cpp leaves the weights in 16 bits: KEEP.
    """
    if not isinstance(format, GgmlFormat) or format.fits(columns):
        return format
    other = GgmlFormat(_FALLBACKS[format.name]) if format.name in _FALLBACKS else None
    return other if other is not None and other.fits(columns) else KEEP


def _check(format: object, bits: int, most: int, group_size: int) -> None:
    if not MIN_BITS <= bits <= most or (group_size < 1 and group_size != WHOLE_ROW):
        raise ValueError(f"no such format: {format!r}; {_HELP}")


def _group_text(group_size: int) -> str:
    return "" if group_size == WHOLE_ROW else f"g{group_size}"


def parse_ggml(text: str) -> GgmlFormat:
    """The type of llama.cpp that ``text`` names; raises UserError for anything else."""
    if text not in GGML:
        raise UserError(f"{text!r} is no type of llama.cpp; there are {', '.join(GGML)}")
    return GgmlFormat(text)


def parse_format(text: str) -> AnyFormat:
    """The format that ``text`` names; ``str`` of a format is its text.

    Raises UserError for anything else, with examples and the valid range.
    """
    if text == str(KEEP):
        return KEEP
    if text == str(DROP):
        return DROP
    if text in GGML:
        return GgmlFormat(text)
    match = _SYNTAX.fullmatch(text)
    if not match:
        raise UserError(f"format {text!r} is not known; {_HELP}")
    bits, group_size, zero = int(match["bits"]), int(match["group"] or WHOLE_ROW), match["zero"]
    if match["kind"] == "any" and zero:
        raise UserError(f"format {text!r} is not known: code books have offsets anyway, leave out {zero}; {_HELP}")
    try:
        if match["kind"] == "any":
            return CodebookFormat(bits, group_size)
        return AffineFormat(bits, group_size) if zero == "_affine" else Format(bits, group_size, zero is None)
    except ValueError:
        raise UserError(f"format {text!r} is not known; {_HELP}") from None
