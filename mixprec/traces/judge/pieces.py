"""A text in overlapping pieces, and what was found in these put together again.

All numbers are half-open ranges of characters of the whole text. Every character is decided by one piece: two
neighbours part in the middle of what they share, where both have seen what stands around.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

#: Neighbours share this part of a piece.
_OVERLAP = 0.1
#: How far a piece's end may be from where pieces would be of one size, to be a sentence's end: a part of a piece.
_SLACK = 0.15
#: Behind such a place something new begins: lines and sentences, those of Chinese and Japanese too.
_BREAK = re.compile(r"\n+|(?<=[.!?…])[ \t]+|(?<=[。！？；])")


class Piece(NamedTuple):
    """Characters ``start`` to ``end``."""

    start: int
    end: int


class Found(NamedTuple):
    """A behaviour in characters ``start`` to ``end``."""

    behaviour: str
    start: int
    end: int


def cut(text: str, whole: Piece, size: int) -> list[Piece]:
    """Pieces of at most ``size`` characters that cover ``whole`` without its blank ends; none where it is blank."""
    inside = text[whole.start : whole.end]
    start = whole.start + len(inside) - len(inside.lstrip())
    end = whole.end - (len(inside) - len(inside.rstrip()))
    shared, slack = max(1, int(size * _OVERLAP)), int(size * _SLACK)
    pieces: list[Piece] = []
    while end - start > size:
        count = -(-(end - start - shared) // (size - shared))
        wanted = start + (end - start + (count - 1) * shared) // count
        stop = _break(text, wanted - slack, min(start + size, wanted + slack), wanted)
        pieces.append(Piece(start, stop))
        start = _break(text, max(start + 1, stop - 2 * shared), stop, stop - shared)
    return [*pieces, Piece(start, end)] if start < end else pieces


def halves(text: str, piece: Piece) -> list[Piece]:
    """Two pieces in place of one."""
    return cut(text, piece, -(-(piece.end - piece.start) * 5 // 8))


def _break(text: str, low: int, high: int, wanted: int) -> int:
    """The place from ``low`` to ``high`` nearest to ``wanted`` where something new begins; else a blank, else that."""
    for places in (
        [match.end() for match in _BREAK.finditer(text, low, high)],
        [at + 1 for at in range(low, high) if text[at].isspace()],
    ):
        if places:
            return min(places, key=lambda place: abs(place - wanted))
    return wanted


def joined(text: str, pieces: Sequence[Piece], found: Sequence[Sequence[Found]]) -> list[Found]:
    """What was ``found`` in each of the ``pieces``, which are in order, without what their neighbours decide.

    A section that the border between two pieces cuts is one again where the other side says the same.
    """
    whole: list[Found] = []
    border = pieces[0].start if pieces else 0
    for number, (piece, inside) in enumerate(zip(pieces, found, strict=True)):
        low, high = border, piece.end
        if number + 1 < len(pieces):
            high = border = _border(text, max(low, pieces[number + 1].start), piece.end)
        for each in inside:
            part = _trimmed(text, each.behaviour, max(each.start, low), min(each.end, high))
            if part is None:
                continue
            before = whole[-1] if whole else None
            across = (
                before is not None and before.end <= low <= part.start and not text[before.end : part.start].strip()
            )
            if before and across and before.behaviour == part.behaviour and each.start < low:
                whole[-1] = Found(part.behaviour, before.start, part.end)
            else:
                whole.append(part)
    return whole


def _border(text: str, low: int, high: int) -> int:
    """Where two pieces part that share ``low`` to ``high``."""
    return _break(text, low, high, (low + high) // 2)


def _trimmed(text: str, behaviour: str, start: int, end: int) -> Found | None:
    """A section without blanks at its ends; None where nothing is left."""
    inside = text[start:end] if start < end else ""
    if not inside.strip():
        return None
    return Found(behaviour, start + len(inside) - len(inside.lstrip()), end - (len(inside) - len(inside.rstrip())))
