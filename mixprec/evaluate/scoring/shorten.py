"""From a sentence to the few words that answer: what it says beyond the question."""

from __future__ import annotations

import functools
import re
import unicodedata

from mixprec.evaluate.scoring.text import plain

_MONTHS = "january|february|march|april|may|june|july|august|september|october|november|december"
_DATE = re.compile(
    rf"(?:\d{{1,2}}(?:st|nd|rd|th)?\s+(?:of\s+)?)?"
    rf"\b(?:{_MONTHS})\b(?:\s+\d{{1,2}}(?:st|nd|rd|th)?\b)?(?:,?\s+\d{{3,4}}\b)?"
    r"|\b\d{1,2}(?:st|nd|rd|th)\s+century(?:\s+(?:BCE?|AD|CE)\b)?"
    r"|\b\d{3,4}s?(?:\s*[-–]\s*\d{2,4}\b)?(?:\s+(?:BCE?|AD|CE)\b)?",
    re.I,
)
_COUNT = re.compile(
    r"(?:\d[\d,]*\s*(?:to|[-–])\s*)?\d[\d,]*(?:\.\d+)?(?:\s+(?:thousand|million|billion|trillion))?"
    r"|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|a dozen)\b"
    r"(?:\s+(?:hundred|thousand|million|billion))?",
    re.I,
)
_WHEN = re.compile(r"\bwhen\b|\b(?:what|which) (?:\w+ )?(?:year|date|day|century|decade)\b|\bdate of\b", re.I)
_HOW_MANY = re.compile(r"\bhow (?:many|much)\b|\bpopulation of\b", re.I)
_HEDGE = re.compile(
    r"^(?:(?:approximately|about|around|roughly|likely|probably|possibly|most likely|called|known as|named|located in|"
    r"in|on|at|by|of|to|from|for|with|as|is|was|are|were|the year|that|also|it['’]s|it|he|she|they|his|her|"
    r"their)\b\s*)+",
    re.I,
)
#: A verb and its preposition in front of a name or number: "sung by The Beatles".
_LED = re.compile(r"^(?:[a-z'’]+\s+){0,3}(?:by|at|in|on|from|to|of|as|is|was)\s+(?=[\"“]?[A-Z0-9])")
_ASIDE = re.compile(r"\s\([^()]*\)")
_TOKEN = re.compile(r"\d[\d,.]*\d|[^\s,;:()\"“”]+|[,;:()]")
_WORD = re.compile(r"\w+")
#: Words that carry no meaning of their own, and those of the prompt's closing sentence.
_IDLE = frozenset(
    """
    a an the is are was were be been has have had do does did of in on at by to for from with and or as that this it its
    his her their he she they who whose which what when where why how final answer question should number words possible
    """.split()  # noqa: SIM905
)
_APPOSITIVES = frozenset({"a", "an", "the", "who", "whose", "which", "where", "and", "but", "in", "as"})
_APPOSITIVE = re.compile(r", (?:an?|the|who|which|where)\b")
#: What stands between the parts of "1898 and 1959".
_PARTED = re.compile(r"\s*(?:,|,?\s+(?:and|or)|&)\s+")
_SINCE = re.compile(r"\s+(?:since|from|until)\s+\d[^,]*$")
_WHO = re.compile(r"\bwho(?:m|se)?\b", re.I)
#: A name in a longer stretch of words.
_NAME = re.compile(r"[A-Z][\w.'’-]*(?:\s+(?:(?:of|de|da|van|von|the|al|bin|la|le)\s+){0,2}[A-Z][\w.'’-]*)*")
_ASKED_NOUN = re.compile(r"\b(?:who|what|which)\s+(?:is|was|are|were)\s+the\s+(\w+)", re.I)
#: An aside between commas, in front of the sentence's verb.
_INSERTED = re.compile(r", (?:an?|the|who|whose|which|where)\b([^,]{1,80}),(?= (?:is|was|are|were|has|had|[a-z]+ed)\b)")
_VERBS = frozenset({"is", "was", "are", "were", "has", "had"})
_PARTICLES = frozenset({"of", "the", "de", "du", "des", "del", "della", "di", "von", "van", "der", "y"})
_PERSONS = re.compile(r"(?:he|she|it|they|his|her|its|their)\b", re.I)
#: A text of so few words is the answer as it stands, unless it is a sentence.
_FEW = 5
_VERB = re.compile(r"\b(?:is|was|are|were)\b")
#: "His wife is X", "It was X", "The year was X": what is said of a pronoun, or of a noun that nothing tells more of.
_SAID_OF = re.compile(
    r"^(?:(?:it|this|that|he|she|they)|(?:the|his|her|its|their)(?: [\w-]+){1,3}|"
    r"[A-Z][\w .-]{1,40}['’]s?(?: [a-z]\w+){1,3}) (?:is|was|are|were) (?=\S)",
    re.I,
)


def tidy(text: str) -> str:
    """Without mark-up, quotes and the full stop around it."""
    return plain(text).strip(" .,;:!\"“”'’")


@functools.lru_cache(maxsize=1024)
def content(text: str) -> frozenset[str]:
    """The words of a text that carry its meaning, without plural and case."""
    return frozenset(word for token in _WORD.findall(text) if (word := _stem(token)) not in _IDLE)


def without_aside(text: str) -> str:
    """A marked answer without what stands behind it in brackets, as in "East Germany (GDR)"."""
    return tidy(_ASIDE.sub("", text)) or tidy(text)


def beyond(answer: str, question: str) -> str:
    """The dates or numbers of a marked answer to a "when" or "how many", without the question's words around them."""
    wanted = kind_of(question)
    typed = _typed(answer, wanted) if wanted else []
    return typed[0] if len(typed) == 1 and content(answer) <= content(question) | content(typed[0]) else answer


def _typed(text: str, wanted: re.Pattern[str]) -> list[str]:
    """The dates or numbers in a text; those that only a comma or "and" parts are one answer."""
    runs: list[tuple[int, int]] = []
    for match in wanted.finditer(text):
        if runs and _PARTED.fullmatch(text, runs[-1][1], match.start()):
            runs[-1] = (runs[-1][0], match.end())
        else:
            runs.append(match.span())
    return [text[start:end] for start, end in runs]


def shortened(sentence: str, question: str) -> str:
    """What a sentence says beyond the question: its last stretch of words that the question doesn't have.

    A "when" is answered by the sentence's last date, a "how many" by its last number, those of the question aside.
    Short texts, and sentences that don't speak in the question's words, stay whole.
    """
    text = without_aside(sentence)
    asked = content(question)
    wanted = kind_of(question)
    typed = _typed(text, wanted) if wanted else []
    bare = content(_HEDGE.sub("", text))
    if typed and (len(text.split()) > _FEW or bare <= asked | content(" ".join(typed))):
        return next((each for each in reversed(typed) if not content(each) <= asked), typed[-1])
    heading, colon, rest = text.partition(": ")
    if colon and rest and len(heading.split()) <= _FEW and content(heading) <= asked:
        return shortened(rest, question)
    if len(text.split()) <= _FEW and not _VERB.search(text):
        return text
    if (named := _equated(text, question)) and not content(named) <= asked:
        return named
    known = len(content(text) & asked)
    if known < 2 and (said := tidy(_HEDGE.sub("", _SAID_OF.sub("", text)))) != text:
        return tidy(_LED.sub("", _APPOSITIVE.split(said)[0]))
    if not known:
        return text
    stretches = [found for each in _stretches(text, asked) if (found := tidy(_LED.sub("", _HEDGE.sub("", each))))]
    if not stretches:
        return text
    last = _SINCE.sub("", stretches[-1])
    names = _NAME.findall(last) if _WHO.search(question) else []
    return names[-1] if names and len(last.split()) > _FEW else last


def _equated(text: str, question: str) -> str | None:
    """X of "X is the spouse of …" and "the spouse of … is X", where the question is "who is the spouse of …"."""
    noun = _ASKED_NOUN.search(question)
    if not noun:
        return None
    the_noun, aside = rf"the {re.escape(noun[1])}\b", r"(?:, [^,]+,)? (?:is|was|are|were)"
    if found := re.match(rf"([^,]{{1,60}}?){aside} {the_noun}", text, re.I):
        return tidy(found[1])
    if found := re.match(rf"{the_noun}[^,]*?{aside} (?!(?:in|at|on|from)\b)(.+)", text, re.I):
        return tidy(_HEDGE.sub("", _APPOSITIVE.split(found[1])[0]))
    return None


def kind_of(question: str) -> re.Pattern[str] | None:
    """What an answer to a "when" or a "how many" looks like, None for other questions."""
    return _DATE if _WHEN.search(question) else _COUNT if _HOW_MANY.search(question) else None


def _stretches(text: str, asked: frozenset[str]) -> list[str]:
    """Runs of words that are not the question's, up to the first appositive behind one (", the …", ", who …")."""
    runs: list[list[str]] = [[]]
    text = _INSERTED.sub(lambda match: "" if content(match[1]) & asked else match[0], text)
    tokens = _TOKEN.findall(text)
    for number, (token, after) in enumerate(zip(tokens, [*tokens[1:], ""], strict=True)):
        if token == "," and after.lower() in _APPOSITIVES and any(map(_says_something, runs)):
            rest = tokens[number:]
            if after.lower() == "and" and (content(" ".join(rest)) & asked or _PERSONS.match(" ".join(rest[2:]))):
                runs.append([])  # another step: "…, and its mascot is …"
                continue
            if after.lower() != "and" or not rest[2:] or not rest[2][:1].isupper():
                break
        known = _is_known(token, asked)
        before = [each for each in runs[-1][-2:] if each.lower() not in _PARTICLES]
        if known and token[:1].isupper() and before and before[-1][:1].isupper():
            known = False  # a name goes on: "Warner Bros. Records" though records were asked about
        if known and token[:1].isupper() and after[:1].isupper() and not _is_known(after, asked):
            known = False  # a name begins with a word of the question: "Chiang Hsiao-wu" though Chiang was asked about
        if token in ";:()" or known or (token == "," and after.lower() in _VERBS):
            runs.append([])
        elif runs[-1] or (_stem(token) not in _IDLE and token != ","):
            runs[-1].append(token)
    return [_joined(run) for run in runs if _says_something(run)]


def _is_known(token: str, asked: frozenset[str]) -> bool:
    words = _WORD.findall(token)
    return bool(words) and all(_stem(word) in asked for word in words)


def _says_something(run: list[str]) -> bool:
    return any(_stem(token) not in _IDLE and token != "," for token in run)


def _joined(run: list[str]) -> str:
    while run and (_stem(run[-1]) in _IDLE or run[-1] == ","):
        run = run[:-1]
    return " ".join(run).replace(" ,", ",")


@functools.lru_cache(maxsize=1 << 14)
def _stem(token: str) -> str:
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
    ending = next((each for each in ("ing", "ed", "es", "s") if word.endswith(each)), "")
    return word.removesuffix(ending).removesuffix("e")
