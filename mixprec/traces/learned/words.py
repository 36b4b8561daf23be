"""Words of a sentence as features see them: numbers and names without their value, and classes of telling words."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

#: A word, a number, a LaTeX command, or any other mark by itself.
_TOKEN = re.compile(r"[A-Za-zÀ-ɏ]+(?:['’][a-z]+)?|\d+(?:[.,:]\d+)*(?:[ap]m\b|th\b|s\b)?|\\\w+|[^\w\s]")
NUMBER, YEAR, NAME, COMMAND = "<n>", "<year>", "<name>", "<latex>"
_YEAR = re.compile(r"(?:1[0-9]|20)\d\ds?$")

_CLASSES = {
    "WAIT": "wait hold hmm hm oh oops",
    "TURN": "alternatively instead actually scratch rather switch backwards restart redo rethink reconsider revisit "
    "re-examine recheck retry abandon discard drop dead",
    "ELSE": "another different other otherwise differently better easier simpler second way approach method idea "
    "angle route strategy plan path direction perspective again over back step restart",
    "WRONG": "wrong mistake incorrect error messed mixed mistaken misread misunderstood misinterpreted contradiction "
    "contradicts confused slip nonsense overlooked miscounted",
    "MAYBE": "maybe perhaps possibly might may could probably likely presumably seems seem appears suppose guess "
    "potentially plausible unlikely",
    "DOUBT": "sure unsure certain uncertain confident doubt doubtful wonder wondering unclear confusing tricky "
    "ambiguous stuck strange odd weird suspicious hesitant worried torn vague convinced positive hard "
    "complicated guess speculation speculating hunch lost unfamiliar",
    "THINK": "think believe feel say assume expect imagine hope",
    "RECALL": "recall remember know known heard familiar",
    "LORE": "theorem formula definition lemma identity property rule principle law fact equivalent defined means "
    "called famous always states known general formulas postulate conjecture",
    "GIVEN": "premise premises says say said states stated statement given according told tells mentions mentioned "
    "clue problem question text condition",
    "TRY": "try trying test testing check checking verify verifying plug plugging example instance suppose consider "
    "case cases take pick e.g sample sanity confirm scenario imagine",
    "WORKS": "works work holds hold fits fit matches match correct right true good great perfect okay yes consistent "
    "satisfied",
    "SO": "so therefore thus hence then consequently implies follows which gives get leads conclude since because "
    "means",
    "AIM": "need want asked asks find figure determine solve understand supposed goal task trying start begin "
    "starting break approach looking wants figuring",
    "NOT": "not no never n't isn't don't doesn't can't cannot didn't won't wasn't couldn't aren't nobody nothing "
    "none without neither nor",
    "I": "i i'm i've i'd i'll me my we let's let us",
    "WAS": "was were had became founded released won wrote written directed born died built located played married "
    "served opened held named established published produced moved attended studied starred known created "
    "designed",
    "IS": "is are be has have",
    "ASK": "what who where when why how which does did is can could should would",
    "MATH": "equation equals equal sum product multiply divide subtract add plus minus squared square root substitute "
    "simplify expand factor coordinates angle triangle circle radius area volume length digits integer "
    "integers prime modulo mod remainder probability polynomial coefficient coefficients derivative vector "
    "matrix",
}
_CLASS: dict[str, tuple[str, ...]] = {}
for _name, _words in _CLASSES.items():
    for _word in _words.split():
        _CLASS[_word] = (*_CLASS.get(_word, ()), _name)


class Words(NamedTuple):
    """A sentence's tokens, classes met, and what novelty is measured by: its names and its longer words."""

    tokens: list[str]
    classes: frozenset[str]
    names: frozenset[str]
    content: frozenset[str]
    numbers: int
    years: int
    signs: int


class _Kind(NamedTuple):
    """A raw token as features see it, its classes, and what counts it as a number, a name or a matter."""

    token: str
    classes: tuple[str, ...]
    sort: str


@functools.lru_cache(maxsize=65536)
def _kind(raw: str) -> _Kind:
    if raw[0].isdigit():
        return _Kind(YEAR, (), "year") if _YEAR.match(raw) else _Kind(NUMBER, (), "number")
    if raw[0] == "\\" and len(raw) > 1:
        return _Kind(COMMAND, (), "sign")
    word = raw.lower().replace("’", "'")
    if not raw[0].isalpha():
        return _Kind(word, (), "sign" if raw in "=<>≤≥+≡^*/" else "stop" if raw in ".?!:" else "mark")
    classes = _CLASS.get(word, ()) + (("NOT",) if word.endswith("n't") else ())
    sort = (
        "telling" if classes else "Name" if raw[0].isupper() and len(raw) > 1 else "matter" if len(raw) > 3 else "small"
    )
    return _Kind(word, classes, sort)


def read(text: str) -> Words:
    """The words of a sentence. A capital inside of it makes a name of a word that isn't a telling one."""
    tokens: list[str] = []
    classes: set[str] = set()
    names: set[str] = set()
    content: set[str] = set()
    numbers = years = signs = 0
    first = True
    for token, kinds, sort in map(_kind, _TOKEN.findall(text)):
        if sort == "telling":
            classes.update(kinds)
            first = False
        elif sort == "small":
            first = False
        elif sort == "matter" or (sort == "Name" and first):
            if len(token) > 3:
                content.add(token)
            first = False
        elif sort == "Name":
            names.add(token)
            if not (tokens and tokens[-1] is NAME):
                tokens.append(NAME)
            continue
        elif sort == "stop":
            first = True  # a capital behind it says nothing
        elif sort == "number":
            numbers += 1
        elif sort == "sign":
            signs += 1
        elif sort == "year":
            years += 1
        tokens.append(token)
    return Words(
        tokens, frozenset(classes), frozenset(names), frozenset(content), numbers=numbers, years=years, signs=signs
    )
