"""Answers that are the letter of an option (Temporal Sequences): with or without brackets, or the option's own text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from mixprec.evaluate.benchmarks.schema import Question
from mixprec.evaluate.scoring.labels import announced, labelled
from mixprec.evaluate.scoring.marks import marked
from mixprec.evaluate.scoring.refusals import NO_OPTION, refused
from mixprec.evaluate.scoring.text import bold, boxed, plain, sentences
from mixprec.evaluate.scoring.verdict import Candidate

_BRACKETED = r"\(\s*(?P<bracketed>[A-Za-z])\s*\)"
_LEADING = re.compile(r"^\W*([A-Z])(?=$|[).:,;\]}|/-]|\s*(?:$|[^\w\s]|\d|(?:and|or)\s+[A-Z]\b))")
#: Behind "option" and the like, or called correct. "A" may be an article: then a word follows that is no verb.
_NAMED = (
    r"(?:选项?|\b(?i:option|choice|letter|index|answer|choose|select|pick|go with|corresponds? to|remaining|leaves)\b)"
    r"(?:\s*\([^()]*\))?\s*(?:is\b|:)?\s*[\"'(]*(?:(?P<named>[B-Z])(?![A-Za-z])|(?P<a>A)(?![A-Za-z])"
    r"(?!\s+(?!is\b|was\b|fits\b|works\b|matches\b|because\b|since\b|as\b)[a-z]))"
    r"|\b(?P<called>[A-Z])\s+(?:is|was)\s+(?:the\s+)?(?:only\s+)?(?:correct|right|answer|best)\b"
)
_LETTER = re.compile(f"{_BRACKETED}|{_NAMED}")
_ALONE = re.compile(r"^[^A-Za-z]*[a-z][^A-Za-z]*$")
_JOINED = re.compile(
    r"\(?\b([A-Z])\b\)?(?:\s+\d[^()]{0,30})?\s*(?:,|/|or|and|&)\s*\(?\b([A-Z])\b\)?"
    r"(?!\s*[a-z]|,?\s*(?:and |or )?\(?[A-Z]\b)"
)
#: "(A) or (B); since …, it is (B)".
_DECIDED = re.compile(r"\b(?:it|answer|option)\s+(?:is|must be|has to be)\s+\(?([A-Z])\b\)?\W*$")
#: "(A), (C) and (D)": what is ruled out together.
_SEVERAL = re.compile(r"\([A-Z]\)(?:,\s*\([A-Z]\))*,?\s+and\s+\([A-Z]\)")
#: Sentences that name the answer, the surest first.
_SURE = re.compile(r"\b(?:correct|right)\b|\bthe only\b|[✅✓✔]|:\s*yes\b", re.I)
_STATED = re.compile(
    r"\b(?:option|choice|letter|index)\b|\b(?:could|can|must|may|might) have \w+|"
    r"\bonly (?:\w+ ){0,2}(?:time|window|slot|gap|period|interval)",
    re.I,
)
#: The letter at the beginning of a list's item or a table's cell.
_ITEM = re.compile(r"^\W*(?:(?:option|choice)\W*)?([A-Z])(?:$|[).:\]\s–—-])", re.I)
#: A reason that ends a sentence; behind "but since …," the claim follows.
_REASON = re.compile(r"(?<!\bbut )(?<!\band )\b(?:because|since|given that)\b|, as\b", re.I)
_CLAUSE = re.compile(r"[,;]\s+|\b(?:but|so|while|whereas|leaving)\b", re.I)
#: What a clause rules out is no answer.
_EXCLUDED = re.compile(
    r"\b(?:cannot|couldn't|could not|can't|isn't|aren't|(?:is|are) not|incorrect|invalid|wrong|impossible|unavailable|"
    r"rul(?:es?|ed|ing) out|eliminat\w+|exclud\w+|not (?:possible|feasible|available|valid|correct|an option))\b|"
    r"[❌✗✘]|:\s*no\b|\bnot (?=between|from|(?:choice |option )?\(?[A-Z]\b|\d)",
    re.I,
)
#: Two times; the first may leave its half of the day to the second ("7 to 11 am").
_SPAN = re.compile(
    r"\b(\d{1,2})(?::00)?\s*(?:([ap])\.?\s?m\b)?\.?\s*(?:to|and|until|till|through|[-–—])\s*"
    r"(\d{1,2})(?::00)?\s*([ap])\.?\s?m\b",
    re.I,
)


#: Two times of which none has its half: by the clock ("07:00 to 11:00"), or "7 to 11 in the morning".
_CLOCK = re.compile(
    r"\b(\d{1,2})(?::00)?\s*(?:to|and|until|till|through|[-–—])\s*(\d{1,2})"
    r"(?:(?:\s+o'clock)?\s+in the (morning|afternoon|evening)"
    r"|:00(?!\s*[ap]\.?\s?m)(?:\s+in the (morning|afternoon|evening))?)",
    re.I,
)


class Span(NamedTuple):
    """A span of time: hours, and halves of the day (``a``, ``p``; of the first perhaps unknown)."""

    start: str
    start_half: str
    end: str
    end_half: str

    def fits(self, other: Span) -> bool:
        """Whether both can be the same."""
        halves = (self.start_half, other.start_half)
        return (self.start, *self[2:]) == (other.start, *other[2:]) and (halves[0] == halves[1] or "" in halves)


def strong(text: str, question: Question) -> Candidate | None:
    """A box or a label, and then the last sentence that names the correct option."""
    options = _options(question)
    for content in boxed(text):
        if letter := of_phrase(plain(content), options):
            return Candidate(letter, "boxed")
        if refusal := refused(content, "boxed"):
            return refusal
    for each in labelled(text):
        for sentence in sentences(each.text):
            if letter := of_phrase(plain(sentence), options):
                return Candidate(letter, "labelled")
        if refusal := refused(each.text, "labelled"):
            return refusal
    rows = marked(text, lambda label: _of_label(label, options))
    if not rows:
        return _stated(text, options)
    if found := _stated(rows.behind, options) or _in_bold(rows.behind, options):
        return found
    if len(rows.good) == 1:
        return Candidate(rows.good[0], "the one option marked")
    if not rows.good and len(rows.verdicts) == len(options):
        return Candidate(NO_OPTION, "no option marked")
    return _stated(rows.before, options) or Candidate(None, f"{len(rows.good)} options are marked")


def _stated(text: str, options: Mapping[str, str]) -> Candidate | None:
    """The last sentence that names the correct option, or one that refuses all of them at the end."""
    said = sentences(text)
    sure = any(_SURE.search(each) and _named(plain(each), options) for each in said[-2:])
    if said and not sure and (refusal := refused(said[-1], "stated")) and not of_phrase(plain(said[-1]), options):
        return refusal
    for stated in (_SURE, _STATED):
        for sentence in reversed(said):
            if stated.search(sentence) and (letter := _named(plain(sentence), options)):
                return Candidate(letter, "stated")
    return None


def _of_label(label: str, options: Mapping[str, str]) -> str | None:
    """The option that a list's item or a table's cell is about."""
    leading = _ITEM.match(label)
    if leading and leading[1].upper() in options:
        return leading[1].upper()
    same = _same(label, options)
    return same[0] if len(same) == 1 else None


def _in_bold(text: str, options: Mapping[str, str]) -> Candidate | None:
    for paragraph in reversed([each for each in text.split("\n\n") if each.strip()][-2:]):
        for content in reversed(bold(paragraph)):
            if letter := of_phrase(plain(content), options):
                return Candidate(letter, "bold")
    return None


def weak(text: str, question: Question) -> Candidate | None:
    """A letter or an option's text in bold in the last paragraphs, or in the last sentences; else no option's time."""
    options = _options(question)
    if found := _in_bold(text, options):
        return found
    last = [plain(each) for each in sentences(text)][-3:]
    for sentence in reversed(last):
        if letter := of_phrase(sentence, options):
            return Candidate(letter, "last sentences")
    claimed = [plain(phrase) for phrase, _ in announced(text)]
    for said in (*claimed, *(each for each in reversed(last) if _SURE.search(each) or _STATED.search(each))):
        if (span := _SPAN.search(said)) and not _same(said, options):
            return Candidate(span[0], "a time of no option")
    return next(
        (found for each in (*reversed(bold(text)), *reversed(last)) if (found := refused(each, "stated"))), None
    )


def of_phrase(phrase: str, options: Mapping[str, str]) -> str | None:
    """The letter that a short text gives; two letters joined by "or" are both given. Letters go before times."""
    claim = _claim(phrase.upper() if _ALONE.match(phrase) else phrase)
    rest = _SEVERAL.sub(" ", claim)
    if _letters(rest, options):
        claim = rest
    joined = _JOINED.search(claim)
    if joined and joined[1] in options and joined[2] in options and joined[1] != joined[2]:
        decided = _DECIDED.search(phrase, joined.end())
        return decided[1] if decided else f"{joined[1]} or {joined[2]}"
    leading = _LEADING.match(claim)
    if leading and leading[1] in options:
        return leading[1]
    return _named(phrase, options)


def _named(sentence: str, options: Mapping[str, str]) -> str | None:
    """The last letter that a sentence names and doesn't rule out, else the one option whose time or text it has."""
    clauses = [each for each in _CLAUSE.split(_SEVERAL.sub(" ", _claim(sentence))) if not _EXCLUDED.search(each)]
    if letters := [letter for each in clauses for letter in _letters(each, options)]:
        return letters[-1]
    same = {letter for each in clauses for letter in _same(each, options)}
    if len(same) > 1 and _REASON.match(sentence):
        return _named(sentence.rpartition(", ")[2], options)  # "since she was there from …, she went from …"
    return same.pop() if len(same) == 1 else None


def _claim(sentence: str) -> str:
    """A sentence without the reason that it gives behind."""
    head = _REASON.split(sentence, maxsplit=1)[0]
    return head if head.strip() else sentence


def _letters(text: str, options: Mapping[str, str]) -> list[str]:
    found = (match[match.lastgroup or 0].upper() for match in _LETTER.finditer(text))
    return [letter for letter in found if letter in options]


def _same(text: str, options: Mapping[str, str]) -> list[str]:
    """The options whose span of time, or text, stands in a text."""
    spans = _spans(text)
    return [letter for letter, option in options.items() if _says(text, spans, option)]


def _says(text: str, spans: list[Span], option: str) -> bool:
    wanted = _spans(option)
    if wanted:
        return any(span.fits(wanted[0]) for span in spans)
    return option.lower() in text.lower()


def _spans(text: str) -> list[Span]:
    marked = [
        Span(start.lstrip("0"), half.lower(), end.lstrip("0"), end_half.lower())
        for start, half, end, end_half in _SPAN.findall(text)
    ]
    return marked + [_by_clock(int(start), int(end), part or other) for start, end, part, other in _CLOCK.findall(text)]


def _by_clock(start: int, end: int, part: str) -> Span:
    """Hours of 24, or of 12 with the part of the day: noon and later are ``p``."""
    if part and part.lower() != "morning":
        start, end = start + 12 * (start < 12), end + 12 * (end < 12)
    return Span(str((start - 1) % 12 + 1), "ap"[start >= 12], str((end - 1) % 12 + 1), "ap"[end >= 12])


def _options(question: Question) -> Mapping[str, str]:
    options: Mapping[str, str] = question.extra.get("options") or dict.fromkeys("ABCD", "\0")
    return options
