"""Which of a claim's names answers a question, and how much around it."""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet

from mixprec.evaluate.scoring.clauses import main
from mixprec.evaluate.scoring.names import Part, names
from mixprec.evaluate.scoring.stems import IDLE, anchors, content, stem

_TOKEN = re.compile(r"\w+")
_TITLE = re.compile(
    r"(?:President|King|Queen|Mayor|Governor|Senator|Judge|Captain|Coach|Pope|Professor)(?=\s[A-Z](?!\w*\sof\b))"
)
_NOUN = re.compile(
    r"(?:\b(?:(?:became|elected|appointed)(?=\s+(?!part\b|member\b))|the|an?|its|his|her|their|whose|only|another|one|this|that|main|official)|(?<!\bhe)(?<!\bshe)(?<!\bit)(?<!\bwho)(?<!\bthat)['’]s)\s+"
    r"(?:(?!is\b|was\b|are\b|were\b|has\b|had\b)[\w-]+\s+){0,2}$",
    re.I,
)
_ADJOINED = re.compile(r"^\s*(?:in|of|for|from|on|to)\s+(?:the\s+)?$", re.I)
_LED = re.compile(r"\b(at|in|on|from|near|during|until|of|with|by)\s+(?:the\s+(?:[a-z-]+\s+)?)?$", re.I)
_PLACED = frozenset({"at", "in", "on", "from"})
#: Words between an anchor and its answer; participles that may be among them.
_NEAR = 4
_CALLED = frozenset({"called", "named", "titled", "considered", "located"})
_PARTICIPLE = re.compile(r"[a-z]+ed\b")
_DESCRIBED = r"(?:(?!from|with|near|into)[a-z]{4,}\s+)?"
_SET_OFF = re.compile(rf",\s+{_DESCRIBED}$")
_DIRECTLY = re.compile(rf",?\s+(?:the\s+)?{_DESCRIBED}$")
#: What a question asks for: "what record label does …", "who is the wife of …".
_HEAD = re.compile(
    r"\b(?:what|which)\s+((?:(?!(?:do|does|did|is|was|are|were|has|had|have|would)\b)\w+\s+){1,3})"
    r"|\b(?:who|what|where)(?:['’]s|\s+(?:is|was|are|were))\s+the\s+((?:name\s+of\s+the\s+)?(?:\w+\s+){1,2})",
    re.I,
)
#: "Who played …", "X, who has played …", but not "X was played by".
_WHO_DID = re.compile(
    r"\W*who\s+(?!is\b|was\b|are\b|were\b|has\b|had\b|did\b|does\b|do\b)([a-z]+(?:s|ed)|wrote|won|led|sang)\b", re.I
)
_DOES = re.compile(r"(?:,?\s+who)?\s+(?:(?:also|has|had|first)\s+)?([a-z]+)\b(?!\s+by\b)")
_LOWER = re.compile(r"\b[a-z]+\b")


def named(text: str, question: str, place: bool) -> str | None:
    """The name that a claim gives to what was asked.

    The first new one behind the last word of the question that has one near behind it; else, of a place, the first
    that a preposition leads, and of anything else the last that none does. None where there is no new name.
    """
    asked = content(question)
    text = main(text, asked)
    found = names(text)
    new = [each for each in found if not content(each.text) <= asked]
    if not new:
        return None
    # "Her husband, X, was on the Y": X only says who that is.
    sought = _HEAD.search(question)
    head = anchors(content(sought[1] or sought[2])) if sought else frozenset[str]()
    new = [each for each in new if not _set_off(text, each, head)] or new
    new = [each for each in new if not any(content(each.text) < content(other.text) for other in new)]
    led = {each: match[1].lower() for each in new if (match := _LED.search(text[: each.start]))}
    new = [each for each in new if each in led and content(each.text) & head] or new  # "in Berrien County"
    known = anchors(asked)
    words = [
        match
        for match in _TOKEN.finditer(text)
        if stem(match[0]) in known and not any(each.start <= match.start() < each.end for each in new)
    ]
    if doer := _doer(text, new, question):
        return _whole(text, doer, asked)
    aside = set()
    for word in reversed(words):
        for name in (each for each in new if each.start >= word.end() and each not in aside):
            if len(new) > 1 and _of_another(text, word, name, question, head):
                aside.add(name)
            elif _near(text[word.end() : name.start], known):
                return _whole(text, name, asked)
            else:
                break
    new = [each for each in new if each not in aside] or new
    new = [each for each in new if not content(each.text) & (asked - head)] or new
    if place:
        return _whole(text, ([each for each in new if led.get(each) in _PLACED] or new)[0], asked)
    return _whole(text, ([each for each in new if each not in led] or new)[-1], asked)


def _doer(text: str, new: list[Part], question: str) -> Part | None:
    """The subject of the verb of a "who played X": the name right in front of it; None where there is none."""
    verb = _WHO_DID.match(question)
    if not verb:
        return None
    alike = anchors({stem(verb[1])})
    for each in new:
        does = _DOES.match(text, each.end)
        if does and stem(does[1]) in alike:
            return each
    return None


def untitled(name: str, asked: AbstractSet[str]) -> str:
    """A name without a title that the question has: "President Ada Stone"."""
    titled = _TITLE.match(name)
    return name[titled.end() :].lstrip() if titled and stem(titled[0]) in asked else name


def _set_off(text: str, name: Part, head: AbstractSet[str]) -> bool:
    """Whether commas set a name off behind a noun that isn't asked for: "her husband, X, was on the Y"."""
    before = _SET_OFF.search(text[: name.start])
    if not before or not text[name.end :].startswith(","):
        return False
    noun = _TOKEN.findall(text[: before.start()])[-1:]
    return not noun or stem(noun[0]) not in head


def _of_another(text: str, word: re.Match[str], name: Part, question: str, head: AbstractSet[str]) -> bool:
    """Whether a name only says which thing is meant ("the castle in X", "her husband X"), and that isn't asked for."""
    between = text[word.end() : name.start]
    noun = re.escape(word[0])
    if _ADJOINED.match(between) and _NOUN.search(text[: word.start()]):
        asks = rf"\b{noun}\s+(?:of|in|at|for)\s+(?:what|which)\b|\b(?:what|which)\s+(?:\w+\s+){{0,2}}{noun}\b"
        return not re.search(asks, question, re.I)
    direct = _DIRECTLY.fullmatch(between) and _NOUN.search(text[: word.start()])
    return bool(direct and head) and stem(word[0]) not in head


def _near(between: str, known: AbstractSet[str]) -> bool:
    """Whether what stands between a word of the question and a name lets the one be called the other."""
    if re.search(r"[;.]\s", between) or sum(stem(each) not in IDLE for each in _TOKEN.findall(between)) > _NEAR:
        return False
    return all(each in _CALLED or stem(each) in known for each in _PARTICIPLE.findall(between))


def _whole(text: str, name: Part, asked: AbstractSet[str]) -> str:
    """A name with the words behind it that end in one of the question's: "Egypt national football team"."""
    if not text[: name.start].endswith("the "):
        return name.text
    behind = list(_LOWER.finditer(text, name.end, name.end + 60))
    for number, word in enumerate(behind[:4]):
        gap = text[behind[number - 1].end() if number else name.end : word.start()]
        if gap.strip() or word[0] in IDLE:
            break
        if stem(word[0]) in asked:
            return text[name.start : word.end()] if number else name.text
    return name.text
