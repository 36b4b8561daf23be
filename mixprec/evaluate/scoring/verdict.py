"""What scoring says of one output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Outcome = Literal["correct", "wrong", "none"]

#: Where the answer stood: behind a closed thinking; in it, where nothing behind it answers; in an output without one.
Place = Literal["answer", "thinking", "unclosed"]


@dataclass(frozen=True)
class Verdict:
    """The verdict on one output.

    ``outcome``: ``none`` where the output commits to no answer. ``answer`` as it was compared, None with ``none``.
    ``em``, ``f1``: exact match and overlap with the gold answer, 0 or 1 but for MuSiQue's F1. ``place`` and ``why`` say
    where the answer stood and by what it was recognised. ``stated``: the last answer in a thinking that never ended,
    which doesn't count.
    """

    outcome: Outcome
    answer: str | None
    em: float
    f1: float
    place: Place | None
    why: str
    stated: str | None = None


class Candidate(NamedTuple):
    """An answer that a reader found, and by what it was recognised; None where the text only says that it has none."""

    answer: str | None
    why: str
