"""Cut reasoning into sentences, each with where it stands."""

from __future__ import annotations

import re
from typing import NamedTuple

#: What ends a sentence: its mark, with what closes behind it, before white space; and every line's end.
_END = re.compile(r"[.?!…]+[\"'”’)\]*]*(?=\s)|(?=\n)")
#: Whose full stop ends no sentence: titles, and inside of a sentence initials and abbreviations too.
_STOPS_SHORT = re.compile(
    r"(?:^(?:Dr|Mr|Mrs|Ms|Prof)|"
    r"[\s(\"“](?:[A-Z]|Dr|Mr|Mrs|Ms|Prof|St|Jr|Sr|Mt|vs|etc|e\.g|i\.e|cf|approx|No|Fig|Eq|U\.S|U\.K))\.$"
)
_CHARACTER = re.compile(r"\S")
_LETTER = re.compile(r"[^\W\d_]")
_LATIN = re.compile(r"[A-Za-zÀ-ɏ]")


class Sentence(NamedTuple):
    """Characters ``start`` to ``end`` of a text; ``opens``: a paragraph begins with it."""

    text: str
    start: int
    end: int
    opens: bool


def split(text: str, start: int = 0, end: int | None = None) -> list[Sentence]:
    """The sentences between two places of a text, in order; together they hold all that isn't white space.

    A sentence ends with its mark or with its line. A paragraph begins behind an empty line.
    """
    found: list[Sentence] = []
    end = len(text) if end is None else end
    behind = start
    while (first := _CHARACTER.search(text, behind, end)) is not None:
        begin = first.start()
        stop = _sentence_end(text, begin, end)
        opens = not found or text.count("\n", behind, begin) > 1
        found.append(Sentence(text[begin:stop], begin, stop, opens))
        behind = stop
    return found


def _sentence_end(text: str, begin: int, end: int) -> int:
    for match in _END.finditer(text, begin, end):
        if text[match.start() : match.end()] != "." or not _STOPS_SHORT.search(text[begin : match.end()]):
            return begin + len(text[begin : match.end()].rstrip())
    return begin + len(text[begin:end].rstrip())


def is_latin(text: str) -> bool:
    """Whether at least half of the letters are Latin; true where there are none."""
    return text.isascii() or 2 * len(_LATIN.findall(text)) >= len(_LETTER.findall(text))
