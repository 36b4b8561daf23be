"""A grammar of one rule: ``{this|that|}`` is one of its alternatives, which may hold braces themselves."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

_INNERMOST = re.compile(r"\{([^{}]*)\}")
_SLOT = re.compile(r"<(\w+)>")
_BLANKS = re.compile(r" {2,}")
_BEFORE_MARK = re.compile(r" +([,.?!;:])")
#: A word that begins a sentence; ``x`` alone is a variable.
_OPENS = re.compile(r"(^\W*|[.?!] )([a-z])(?=[a-z']|(?<=a) [a-z])")


def spoken(template: str, chance: random.Random, slots: Mapping[str, str] | None = None) -> str:
    """A sentence of the template: slots ``<name>`` filled, an alternative chosen of each ``{a|b}``, a capital in front.

    Raises KeyError for a slot that isn't given. Values of slots may hold braces themselves.
    """
    text = _SLOT.sub(lambda match: (slots or {})[match[1]], template)
    while "{" in text:
        text, found = _INNERMOST.subn(lambda match: chance.choice(match[1].split("|")), text)
        if not found:
            raise ValueError(f"{template!r}: a brace isn't closed")
    tidy = _BEFORE_MARK.sub(r"\1", _BLANKS.sub(" ", text)).strip()
    return _OPENS.sub(lambda match: match[1] + match[2].upper(), tidy)


class Deck:
    """Templates drawn without repeating one before all were drawn, so that long traces vary."""

    def __init__(self, templates: Sequence[str], chance: random.Random) -> None:
        self._all, self._chance, self._left = list(templates), chance, list[str]()

    def draw(self) -> str:
        if not self._left:
            self._left = self._chance.sample(self._all, len(self._all))
        return self._left.pop()
