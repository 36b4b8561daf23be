"""Words by their stems, and those that stand for each other in a question and its answer."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Set as AbstractSet

_TOKEN = re.compile(r"\w+")
#: Words that carry no meaning of their own, and those of the prompt's closing sentence.
IDLE = frozenset(
    """
    a an the is are was were be been has have had do does did of in on at by to for from with and or as that this it its
    his her their he she they who whose which what when where why how final answer question should number words possible
    """.split()  # noqa: SIM905
)


@functools.lru_cache(maxsize=1024)
def content(text: str) -> frozenset[str]:
    """The words of a text that carry its meaning, without plural and case."""
    return frozenset(word for token in _TOKEN.findall(text) if (word := stem(token)) not in IDLE)


@functools.lru_cache(maxsize=1 << 14)
def stem(token: str) -> str:
    """A word without case, accents and its commonest endings, so that "followed" meets "follow"."""
    letters = unicodedata.normalize("NFKD", token)
    word = (
        "".join(each for each in letters if not unicodedata.combining(each))
        .lower()
        .strip(".!?*'’\"")
        .removesuffix("'s")
        .removesuffix("’s")
    )
    if len(word) < 5:
        return word
    ending = next((each for each in ("ing", "ed", "er", "es", "s") if word.endswith(each)), "")
    return word.removesuffix(ending).removesuffix("e")


#: What ends something; a date beside it is none of its beginning.
AGAINST = frozenset(
    map(
        stem,
        ("lost", "broke", "split", "ended", "dissolved", "disbanded", "ceased", "abolished", "closed", "born", "left"),
    )
)
#: What stands for each other in a question and its answer.
_ALIKE = [
    frozenset(map(stem, each.split()))
    for each in (
        "spouse wife husband married marry wed",
        "child son daughter",
        "die died dies pass passed death",
        "become became becomes",
        "establish established found founded form formed created start started began begin begun introduced opened",
        "abolish abolished dissolved ended ceased annexed",
        "own owner owned belong belongs subsidiary part parent",
        "seat capital capitol",
        "educated studied study attended graduated",
        "play played portrayed voiced starred",
        "follow followed succeeded",
        "mean means meaning stand stands short",
        "birthplace birth born",
        "release released published issued",
        "population people inhabitants residents live",
    )
]


def anchors(asked: AbstractSet[str]) -> frozenset[str]:
    """The stems that a question asks by, with those that stand for them."""
    return frozenset(asked).union(*(each for each in _ALIKE if each & asked))
