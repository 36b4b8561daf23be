"""What a sentence claims: its names, dates and numbers, without what it denies, compares with, or only adds."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Set as AbstractSet
from typing import NamedTuple

#: "not X", "wasn't X but", up to where the denial ends.
_DENIED = re.compile(
    r"(?:\b(?:not|never)\b|n['’]t\b)(?!\s+only\b)[^,;:()。，]{0,160}?(?=\s+but\b|[,;:()。，]|\.?$)|不是[^，。]*[，。]\s*而是"
)
#: "X is not his spouse": of a denied clause the subject goes too.
_UNDONE = re.compile(
    r"(?<![^,;:()])[^,;:()\0]{0,160}\b(?:is|was|are|were|did|does|do|has|had|have|could|would|will|be)\s*\0(?!\s*but\b)"
)
_OTHERS = re.compile(
    r"^\W*(?:some|many|most|people|others|it is often)\b[^,]{0,120}"
    r"\b(?:believed?|say|said|think|thought|claim(?:ed)?|assumed?)\b[^,]{0,120},\s+but\s+",
    re.I,
)
#: "the team that would not play is X": such a clause only says which thing is meant.
_WHICH_NOT = re.compile(
    r"(?<=\w)\s(?:that|who|which)\s+(?:\w+\s+){0,2}?(?:not|\w+n['’]t)\s[^,;:()]{0,80}?(?=\s(?:is|was|are|were)\s)"
)
#: "It used to belong to X, but today …": what counts stands behind.
_FORMER = re.compile(
    r"^[^,;]{0,160}\b(?:used to|formerly|previously|once)\b[^,;]{0,120},\s+but\s+"
    r"(?=(?:it\s+)?(?:is\s+)?(?:now|today|currently)\b)",
    re.I,
)
_COMPARED = re.compile(
    r",?\s*\b(?:rather than|instead of|unlike|as opposed to|other than|in contrast to|contrary to|different from|"
    r"(?:long|shortly|\w+ years?) (?:before|after)|(?:less|more|other) than(?!\s+(?:\w+\s+)?\d))\b[^,;]{0,120}",
    re.I,
)
#: A clause behind the claim, and one in front of it.
_BEHIND = re.compile(
    r"(?<=\w)(?:,\s+(?:although|though|while|whereas|after|before|when|until|because|since|as|but|so|even though|"
    r"replacing|following)|\s+(?:because|although|though|while|whereas|after|before|since|until|when))\b.*$",
    re.I,
)
_FRONT = re.compile(
    r"^(?:when|after|before|while|although|though|because|since|as|like|besides|along with)\b[^,]{1,120},\s*", re.I
)
_WRONGLY = re.compile(r"\b(?:wrongly|incorrectly|mistakenly|erroneously|falsely|contrary to|forbidden)\b", re.I)
_CAPITAL = "A-ZÀ-ÖØ-ÞĀŁŚŞŻŽŠČĐ"
_CAP = rf"[{_CAPITAL}][A-Za-zÀ-ɏ0-9'’&-]*(?:\.(?=[A-Za-z])[A-Za-z]*)*\.?"
_PARTICLE = r"(?:of|de|da|van|von|the|al|bin|la|le|del|du|di|for|y)"
_ONE = rf"{_CAP}(?:\s+(?:{_PARTICLE}\s+){{0,2}}{_CAP}|\s+-\s+{_CAP}){{0,8}}"
_NAME = re.compile(rf"(?<![A-Za-zÀ-ɏ0-9]){_ONE}(?:(?:,\s+{_ONE}){{0,4}},?\s+(?:and|or|&)\s+(?:the\s+)?{_ONE})?")
_QUOTED = re.compile(r"[\"“「《]([^\"“”「」《》]{2,80})(?:[\"”」》]|$)")
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
#: Words that carry no meaning of their own, and those of the prompt's closing sentence.
IDLE = frozenset(
    """
    a an the is are was were be been has have had do does did of in on at by to for from with and or as that this it its
    his her their he she they who whose which what when where why how final answer question should number words possible
    """.split()  # noqa: SIM905
)
#: Words that open a sentence and no name.
_OPENERS = frozenset(
    """
    a an the it its his her he she they their this that these those in on at by from to of for with after before when
    while since so thus therefore hence as is was are were i we you there if and but or also however then one some many
    others my our both each according based during another like what who whose which where
    """.split()  # noqa: SIM905
)
#: Words between an anchor and its answer; participles that may be among them.
_NEAR = 4
_CALLED = frozenset({"called", "named", "titled", "considered", "located"})
_PARTICIPLE = re.compile(r"[a-z]+ed\b")
_DESCRIBED = r"(?:(?!from|with|near|into)[a-z]{4,}\s+)?"
_INSERTED = re.compile(r",\s+(?:an?|the|who|whose|which|where)\b([^,]{1,80}),(?=\s+[a-z])")
_APPENDED = re.compile(
    r",\s+(?:an?|the|who|whose|which|where|"
    r"(?:for|in|of|with|under|by|at|from|on|to|during|through) wh(?:ich|om|ose)|in|at|near|between|located|based|"
    r"south|north|east|west|also|formerly|later|now|once)\b([^,]*)$"
)
#: ", a Nashville label" says of a name what it is.
_SORT = re.compile(r",\s+an?\s+(?:[\w-]+\s+){0,3}[a-z]+\W*$")
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
_DEMONYM = re.compile(r"[A-Z][a-z]+(?:an|ish|ese|ch)$")
_APPOSED = re.compile(r",\s+(?:\d+\w+\s+)?$")
_LOWER = re.compile(r"\b[a-z]+\b")


class Part(NamedTuple):
    """A piece of a sentence."""

    text: str
    start: int
    end: int


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


def denied(sentence: str) -> bool:
    """Whether a sentence reports what others get wrong."""
    return bool(_WRONGLY.search(sentence))


def claimed(sentence: str) -> str:
    """A sentence without what it denies and what it compares with."""
    sentence = _WHICH_NOT.sub("", _FORMER.sub("", _OTHERS.sub("", sentence)))
    sentence = _UNDONE.sub("", _DENIED.sub("\0", sentence)).replace("\0", " ")
    return _COMPARED.sub(" ", sentence).replace("  ", " ").strip(" ,;")


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


def main(sentence: str, asked: AbstractSet[str]) -> str:
    """A claim without the clauses in front of it and behind it that only add something."""
    bare = _BEHIND.sub("", sentence)
    bare = bare if len(bare.split()) > 2 or names(bare) else sentence
    known = anchors(asked)
    bare = _SORT.sub("", bare)
    bare = _APPENDED.sub(lambda match: match[0] if content(match[1]) & known else "", bare)
    bare = _INSERTED.sub(lambda match: match[0] if content(match[1]) & known else "", bare)
    return _FRONT.sub("", bare) or bare


def main_end(sentence: str) -> int:
    """Where a clause begins that stands behind the claim: ", although parts are from the 1590s"."""
    behind = _BEHIND.search(sentence)
    return behind.start() if behind else len(sentence)


def anchors(asked: AbstractSet[str]) -> frozenset[str]:
    """The stems that a question asks by, with those that stand for them."""
    return frozenset(asked).union(*(each for each in _ALIKE if each & asked))


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
