"""From a sentence to the few words that answer: what it says beyond the question."""

from __future__ import annotations

import re

from mixprec.evaluate.scoring.clauses import claimed, main_end
from mixprec.evaluate.scoring.names import Part
from mixprec.evaluate.scoring.naming import named, untitled
from mixprec.evaluate.scoring.stems import AGAINST, IDLE, anchors, content, stem
from mixprec.evaluate.scoring.text import plain, sentences

_MONTHS = "january|february|march|april|may|june|july|august|september|october|november|december"
_NUMBERED = r"one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
_DATE = re.compile(
    rf"(?:(?<!\d)\d{{1,2}}(?:st|nd|rd|th)?\s+(?:of\s+)?)?"
    rf"(?<![a-z])(?:{_MONTHS})\b(?:\s+\d{{1,2}}(?:st|nd|rd|th)?\b)?(?:,?\s+\d{{3,4}}(?!\d)(?:\s+(?:BCE?|AD|CE)\b)?)?"
    r"|(?<!\d)\d{1,2}(?:st|nd|rd|th)\s+century(?:\s+(?:BCE?|AD|CE)\b)?"
    r"|(?<![\d,.])\d{3,4}(?!\d|,\d|st|nd|rd|th)s?(?:\s*[-–]\s*\d{2,4}(?!\d))?(?:\s+(?:BCE?|AD|CE)\b)?",
    re.I,
)
_TIME = re.compile(
    r"(?<![\d:])\d{1,2}(?::\d{2})?\s*(?:[ap]\.?\s?m\b\.?|o['’]clock(?:\sin the (?:morning|afternoon|evening))?)"
    r"|\b(?:noon|midnight)\b",
    re.I,
)
#: "Between 5am and 1am" is "from 5am to 1am": it begins at the first.
_BETWEEN = re.compile(rf"\bbetween ({_TIME.pattern}) and\b", re.I)
_SPAN = re.compile(rf"\b(?:\d+|{_NUMBERED})[- ](?:years?|months?|weeks?|days?|hours?|minutes?|decades?)\b", re.I)
_COUNT = re.compile(
    r"(?:\d[\d,]*\s*(?:to|[-–])\s*)?\d[\d,]*(?:\.\d+)?(?:\s+(?:thousand|million|billion|trillion))?"
    r"(?:\s(?:mi|km|kg|ft|lbs?)\b)?"
    rf"|\b(?:{_NUMBERED}|a dozen)\b(?:\s+(?:hundred|thousand|million|billion))?",
    re.I,
)
#: A number that may be a year: beside others it is no count.
_YEAR = re.compile(r"1[5-9]\d\d|20\d\d")
_WHEN = re.compile(
    r"(?<![a-z] )\bwhen\b|\b(?:what|which) (?:\w+ )?(?:year|date|day|century|decade)\b|\bdate of\b", re.I
)
_WHAT_TIME = re.compile(r"\b(?:what|which) (?:time|hour)\b", re.I)
_HOW_LONG = re.compile(r"\bhow long\b", re.I)
_HOW_MANY = re.compile(r"\b(?:how|who) (?:many|much)\b|\b(?:population|number) of\b|\blimit on\b", re.I)
_KINDS = ((_WHAT_TIME, _TIME), (_HOW_LONG, _SPAN), (_WHEN, _DATE), (_HOW_MANY, _COUNT))
_HEDGE = re.compile(
    r"^(?:(?:approximately|about|around|roughly|likely|probably|possibly|most likely|called|known as|named|located in|"
    r"in|on|at|by|of|to|from|for|with|as|is|was|are|were|the year|that|also|it['’]s|it|he|she|they|his|her|"
    r"their)\b\s*)+",
    re.I,
)
#: A verb and its preposition in front of a name or number: "sung by The Beatles".
_LED = re.compile(r"^(?:[a-z'’]+\s+){0,3}(?:by|at|in|on|from|to|of|as|is|was)\s+(?=[\"“]?[A-Z0-9])")
_ASIDE = re.compile(r"\s\([^()]*\)")
_TOKEN = re.compile(r"\d[\d,.:]*\d|[^\s,;:()\"“”]+|[,;:()]")
_WORD = re.compile(r"\w+")
_APPOSITIVES = frozenset({"a", "an", "the", "who", "whose", "which", "where", "and", "but", "in", "as"})
_APPOSITIVE = re.compile(r", (?:an?|the|who(?:se)?|which|where|also|among|elected|born|one|now|from|in|[a-z]+ed)\b")
#: A place's state or country, a person's rank: ", Wisconsin", ", Duke of Edinburgh"; an enumeration has two of them.
_WITHIN = re.compile(r"(?<=\w), (?!(?:[JS]r|Inc|Ltd)\b)[A-Z][^,]{0,60}$")
#: What stands between the parts of "1898 and 1959".
_PARTED = re.compile(r"\s*(?:,|,?\s+(?:and|or)|&)\s+")
_SINCE = re.compile(r"\s+(?:since|from|until)\s+\d[^,]*$")
#: Between clauses; what puts a date beside the claim; and what a sentence begins with that says nothing.
_CLAUSE = re.compile(r"[,;]\s|\s[–—]\s|\b(?:and|but|who|which|while|whereas|although|though)\b", re.I)
_LONGEST_CLAUSE = 200
_BESIDE = re.compile(
    r"\b(?:before|after|until|till|than|to|as of|aged|born(?:\s(?:in|on))?)\s+(?:about\s+|around\s+)?$", re.I
)
_OPENS = re.compile(r"(?:it|this|that|they|he|she|we|you|at|in|on|from)\b", re.I)
_POINTS = re.compile(r"\s(?:it|there|him|her|them|this|that|so)$")
#: A short text that is a sentence, by one of its words.
_VERBAL = re.compile(r"(?<=[a-z] )(?:[a-z]+ed|began|became|begins?|starts?|opens?|dates?|is|was|are|were)\b")
_CJK = re.compile(r"[\u4e00-\u9fff]")
_MEANING, _MEANS = re.compile(r"\bmeaning\b"), re.compile(r"\b(?:means|meaning is|refers to|it is) [\"“]?(.{1,80})$")
_ASKS_WHO, _LOWER_LEAD = re.compile(r"who\b", re.I), re.compile(r"^(?:(?:the )?[a-z]+ ){1,3}(?=[A-Z])")
#: "They were a, b and c".
_LISTED = re.compile(
    r"(?:they|these|those) (?:are|were) ((?![a-z]+ed\b)(?:[^,;]{1,40}, ){1,8}(?:[^,;]{1,40} )?(?:and|or) [^,;]{1,40})$",
    re.I,
)
_HEADINGS = frozenset({"s", "name", "nam", "person", "actor", "actress", "singer", "plac", "city", "year", "dat"})
_ASKS = re.compile(r"\b(?:who(?:m|se)?|wh(?:at|ich|ere|en|y)|how)\b", re.I)
_WHERE = re.compile(r"\bwhere\b|\b(?:location|origin|place) of\b", re.I)
#: Questions that no name answers.
_NO_NAME = re.compile(
    r"\b(?:why|how)\b|\bfor\W*$|\btalking about\b|\bdoing\b|\bmeaning\b|\bfield of\b|\b(?:what|which) year\b", re.I
)
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
    return plain(text).strip(" .,;:!\"“”'’。，、！；：「」《》→")


def without_aside(text: str) -> str:
    """A marked answer without what stands behind it in brackets, as in "East Germany (GDR)"."""
    return tidy(_ASIDE.sub("", text)) or tidy(text)


def beyond(answer: str, question: str) -> str:
    """The dates or numbers of a marked answer to a "when" or "how many", without the question's words around them."""
    wanted = kind_of(question)
    found = _typed(answer, wanted) if wanted else []
    known = content(question) | content(found[0].text) if len(found) == 1 else frozenset()
    return found[0].text if found and content(answer) <= known else answer


def _typed(text: str, wanted: re.Pattern[str]) -> list[Part]:
    """The dates or numbers in a text; those that only a comma or "and" parts are one answer."""
    runs: list[tuple[int, int]] = []
    for match in wanted.finditer(text):
        if runs and _PARTED.fullmatch(text, runs[-1][1], match.start()):
            runs[-1] = (runs[-1][0], match.end())
        else:
            runs.append(match.span())
    return [Part(text[start:end], start, end) for start, end in runs]


def typed(text: str, question: str) -> str | None:
    """The date, time or number that a text gives to a question after one, None where it has none or none is asked for.

    Of several the one beside the question's words; else one that is no decade, or no year for a number; else the last.
    Those of the question go last of all.
    """
    wanted = kind_of(question)
    text = _BETWEEN.sub(r"from \1 to", text)
    found = _typed(text, wanted) if wanted else []
    asked = content(question)
    known = anchors(content(focus(question)))
    end = main_end(text)

    def rank(part: Part) -> tuple[bool, int, bool, int]:
        first = max(0, part.start - _LONGEST_CLAUSE)
        start = max((each.end() for each in _CLAUSE.finditer(text, first, part.start)), default=first)
        ends = _CLAUSE.search(text, part.end, part.end + _LONGEST_CLAUSE)
        clause = text[start : ends.start() if ends else part.end + _LONGEST_CLAUSE]
        words = {stem(each) for each in _WORD.findall(clause) if each.islower()}
        against = bool(_BESIDE.search(text[first : part.start]) or words & (AGAINST - known)) or part.start > end
        vague = bool(_YEAR.fullmatch(part.text)) if wanted is _COUNT else part.text.endswith("0s")
        return not content(part.text) <= asked, bool(words & known) - 2 * against, not vague, part.start

    return max(found, key=rank).text.strip() if found else None


def focus(question: str) -> str:
    """The sentence of a question that asks."""
    return next((each for each in reversed(sentences(question)) if _ASKS.search(each)), question)


def shortened(sentence: str, question: str) -> str:
    """What a sentence says beyond the question: its last stretch of words that the question doesn't have.

    A "when" is answered by the date beside the question's words, a "how many" by such a number; what asks after a
    name by a name, if the sentence has a new one. Short texts, and sentences that don't speak in the question's words,
    stay whole.
    """
    text = claimed(without_aside(sentence))
    asked = content(question)
    found = typed(text, question)
    few = len(text.split()) <= _FEW and not (_OPENS.match(text) or _POINTS.search(text) or _CJK.search(text))
    if found and (
        not few
        or kind_of(question) is _SPAN
        or _VERBAL.search(text)
        or content(_HEDGE.sub("", text)) <= asked | content(found)
    ):
        return found
    heading, colon, rest = text.partition(": ")
    if colon and rest and len(heading.split()) <= _FEW and content(heading) <= anchors(asked) | _HEADINGS:
        return shortened(rest, question)
    if few and not _VERB.search(text):
        return text
    if (equated := _equated(text, question)) and not content(equated) <= asked:
        return untitled(_LOWER_LEAD.sub("", equated), asked) if _ASKS_WHO.match(question) else equated
    asks = focus(question)
    if (meant := _MEANS.search(text)) and _MEANING.search(question):
        return tidy(meant[1])
    if listed := _LISTED.match(text):
        return tidy(listed[1])
    if not _NO_NAME.search(asks) and (name := named(text, question, bool(_WHERE.search(asks)))):
        return untitled(tidy(name), asked)
    known = len(content(text) & asked)
    if known < 2 and (said := tidy(_HEDGE.sub("", _SAID_OF.sub("", text)))) != text:
        return tidy(_LED.sub("", _APPOSITIVE.split(said)[0]))
    if not known:
        return text
    stretches = [found for each in _stretches(text, asked) if (found := tidy(_LED.sub("", _HEDGE.sub("", each))))]
    return _SINCE.sub("", stretches[-1]) if stretches else text


def _equated(text: str, question: str) -> str | None:
    """X of "X is the spouse of …" and "the spouse of … is X", where the question is "who is the spouse of …"."""
    noun = _ASKED_NOUN.search(question)
    if not noun:
        return None
    the_noun = rf"the (?:[a-z]+ )?{re.escape(noun[1])}\b"
    aside = r"(?:, [^,]+,)? (?:is|was|are|were)"
    if found := re.match(rf"([^,]{{1,60}}?){aside} {the_noun}", text, re.I):
        return tidy(found[1])
    if found := re.match(rf"{the_noun}[^,]*?{aside} (?!(?:in|at|on|from)\b)(.+)", text, re.I):
        return tidy(_HEDGE.sub("", _WITHIN.sub("", _APPOSITIVE.split(found[1])[0])))
    return None


def kind_of(question: str) -> re.Pattern[str] | None:
    """What an answer to a "when" or a "how many" looks like, None for other questions."""
    asks = focus(question)
    head = _ASKS.search(asks)
    return next((kind for words, kind in _KINDS if words.search(asks, head.start() if head else 0)), None)


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
        elif runs[-1] or (stem(token) not in IDLE and token != ","):
            runs[-1].append(token)
    return [_joined(run) for run in runs if _says_something(run)]


def _is_known(token: str, asked: frozenset[str]) -> bool:
    words = _WORD.findall(token)
    return bool(words) and all(stem(word) in asked for word in words)


def _says_something(run: list[str]) -> bool:
    return any(stem(token) not in IDLE and token != "," for token in run)


def _joined(run: list[str]) -> str:
    while run and (stem(run[-1]) in IDLE or run[-1] == ","):
        run = run[:-1]
    return " ".join(run).replace(" ,", ",")
