"""The names in a sentence."""

from __future__ import annotations

import re
from typing import NamedTuple

_CAPITAL = "A-ZÀ-ÖØ-ÞĀŁŚŞŻŽŠČĐ"
_CAP = rf"[{_CAPITAL}][A-Za-zÀ-ɏ0-9'’&-]*(?:\.(?=[A-Za-z])[A-Za-z]*)*\.?"
_PARTICLE = r"(?:of|de|da|van|von|the|al|bin|la|le|del|du|di|for|y)"
_ONE = rf"{_CAP}(?:\s+(?:{_PARTICLE}\s+){{0,2}}{_CAP}|\s+-\s+{_CAP}){{0,8}}"
_NAME = re.compile(rf"(?<![A-Za-zÀ-ɏ0-9]){_ONE}(?:(?:,\s+{_ONE}){{0,4}},?\s+(?:and|or|&)\s+(?:the\s+)?{_ONE})?")
_QUOTED = re.compile(r"[\"“「《]([^\"“”「」《》]{2,80})(?:[\"”」》]|$)")
#: Words that open a sentence and no name.
_OPENERS = frozenset(
    """
    a an the it its his her he she they their this that these those in on at by from to of for with after before when
    while since so thus therefore hence as is was are were i we you there if and but or also however then one some many
    others my our both each according based during another like what who whose which where
    """.split()  # noqa: SIM905
)
_DEMONYM = re.compile(r"[A-Z][a-z]+(?:an|ish|ese|ch)$")
_APPOSED = re.compile(r",\s+(?:\d+\w+\s+)?$")


class Part(NamedTuple):
    """A piece of a sentence."""

    text: str
    start: int
    end: int


def names(text: str) -> list[Part]:
    """Names, enumerations of names, and quoted pieces, in their order; an apposition belongs to the name before it."""
    quoted = [Part(match[1], *match.span(1)) for match in _QUOTED.finditer(text)]
    found = list(quoted)
    last = -1
    for match in _NAME.finditer(text):
        start, name = match.start(), match[0]
        if any(one.start <= start < one.end for one in quoted):
            continue
        while (first := name.split(None, 1)) and first[0].lower() in _OPENERS and len(first) > 1:
            if start and first[0] == "The":
                break
            start += len(name) - len(first[1])
            name = first[1]
        apposed = last >= 0 and _APPOSED.fullmatch(text, last, start)
        last = match.end()
        possessive = name.endswith(("'s", "’s", "'", "’"))
        demonym = _DEMONYM.match(name) and re.match(r"\s+[a-z]", text[match.end() :])
        if not (apposed or possessive or demonym or name.lower() in _OPENERS):
            found.append(Part(name if name.endswith("Inc.") else name.rstrip("."), start, match.end()))
    return sorted(found, key=lambda part: part.start)
