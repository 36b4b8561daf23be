"""Answers that a box or a label announces: ``**Answer:** X``, ``Final Answer`` over a line, ``the answer is X``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from mixprec.evaluate.scoring.text import boxed

_LABEL = re.compile(
    r"(?:\b(?:[aA]nswers?|ANSWERS?)\b|答案)[*_`\"')]*(?i:"  # the case of the word is spelt out: it is searched for
    r"(?:\s+to\s+(?:the|this|your)\s+(?:question|problem)\b)?"
    r"(?:\s+\(?in\s+[^:.()\n]{1,40}\)?(?=[*_]*:))?[*_]*"
    r"(?P<link>\s*[:：=是]|\s+[-–—](?=\s)|\s+(?:is|are|was|would\s+be|should\s+be|must\s+be|has\s+to\s+be|remains|becomes)\b\s*[:：]?)?"
    r"[*_`]*\s*)"
)
#: "The answer is not 12"; "not determinable" is one.
_NEGATED = re.compile(
    r"(?:not|never|neither|n't)\b(?!\s+(?:\w+ly\s+)?(?:determin|decid|enough|sufficient|possible|known|available|specified|"
    r"given|provided|clear|certain))",
    re.IGNORECASE,
)
#: What makes a statement a supposition, in front of the label in its sentence.
_SUPPOSED = re.compile(
    r"\b(?:if|whether|perhaps|maybe|suppose|possibly|might|could|alternatively|think|unless|assuming)\b[^.!?\n]*$",
    re.IGNORECASE,
)
#: Characters behind a label, and labels from the end, that are looked at.
_LONGEST, _MOST = 700, 12


class Labelled(NamedTuple):
    """The text behind a label, to the end of its line; ``start`` is the label's place."""

    text: str
    start: int


def announced(text: str) -> Iterator[tuple[str, str]]:
    """What boxes hold and then what stands behind labels, the last first, each with what announces it."""
    yield from ((content, "boxed") for content in boxed(text))
    yield from ((each.text, "labelled") for each in labelled(text))


def labelled(text: str) -> Iterator[Labelled]:
    """Labelled answers, the last first; negated and supposed ones are passed over."""
    for match in reversed(list(_LABEL.finditer(text))[-_MOST:]):
        rest = text[match.end() : match.end() + _LONGEST]
        if not match["link"] and not _is_heading(text, match):
            continue
        if _NEGATED.match(rest) or _SUPPOSED.search(text, max(0, match.start() - 120), match.start()):
            continue
        line = rest.partition("\n")[0].strip()
        if line.strip("*_`$\\[]() "):
            yield Labelled(line, match.start())


def _is_heading(text: str, match: re.Match[str]) -> bool:
    """Whether the word stands at the end of a line of its own, as ``**Final Answer**`` and ``### Answer`` do."""
    if "\n" not in match[0]:
        return False
    line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
    return len(line.split()) <= 3
