"""Answers that are the letter of an option (Temporal Sequences): with or without brackets, or the option's own text."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mixprec.evaluate.benchmarks.schema import Question
from mixprec.evaluate.scoring.labels import labelled
from mixprec.evaluate.scoring.text import bold, boxed, plain, sentences
from mixprec.evaluate.scoring.verdict import Candidate

_BRACKETED = re.compile(r"\(\s*([A-Za-z])\s*\)")
_LEADING = re.compile(r"^\W*([A-Z])(?=$|[).:,;\]}|/-]|\s*(?:$|[^\w\s]|\d|(?:and|or)\s+[A-Z]\b))")
#: "A" may be an article: then a word follows that is no verb of an option.
_NAMED = re.compile(
    r"\b(?i:option|choice|letter|index|answer)\b(?:\s*\([^()]*\))?\s*(?:is\b|:)?\s*[\"'(]*"
    r"(?:([B-Z])\b|(A)\b(?!\s+(?!is\b|was\b|fits\b|works\b|matches\b|because\b|since\b|as\b)[a-z]))"
)
_JOINED = re.compile(r"\(?\b([A-Z])\b\)?(?:\s+\d[^()]{0,30})?\s*(?:,|/|or|and|&)\s*\(?\b([A-Z])\b\)?(?!\s*[a-z])")
_STATED = re.compile(
    r"\b(?:correct|right|option|choice|letter|index)\b|\bcould have gone\b|\bonly (?:\w+ )?(?:time|window)", re.I
)
_NONE = re.compile(r"\bnone of (?:the|these|them)\b|\bno (?:correct|valid) (?:option|answer)\b", re.I)
_TIME = re.compile(r"\b(\d{1,2})(?::?00)?\s*([ap])\.?\s?m\b", re.I)


def strong(text: str, question: Question) -> Candidate | None:
    """A box or a label, and then the last sentence that names the correct option."""
    options = _options(question)
    for content in boxed(text):
        if letter := of_phrase(plain(content), options):
            return Candidate(letter, "boxed")
    for each in labelled(text):
        if letter := of_phrase(plain(each.text), options):
            return Candidate(letter, "labelled")
        if _NONE.search(each.text):
            return Candidate("none of the options", "labelled")
    for sentence in reversed(sentences(text)):
        if _STATED.search(sentence) and (letter := _named(plain(sentence), options)):
            return Candidate(letter, "stated")
    return None


def weak(text: str, question: Question) -> Candidate | None:
    """A letter or an option's text in bold in the last paragraphs, or in the last sentences."""
    options = _options(question)
    for paragraph in reversed([each for each in text.split("\n\n") if each.strip()][-2:]):
        for content in reversed(bold(paragraph)):
            if letter := of_phrase(plain(content), options):
                return Candidate(letter, "bold")
    for sentence in reversed([plain(each) for each in sentences(text)][-3:]):
        if letter := of_phrase(sentence, options):
            return Candidate(letter, "last sentences")
    return None


def of_phrase(phrase: str, options: Mapping[str, str]) -> str | None:
    """The letter that a short text gives; two letters joined by "or" are both given. Letters go before times."""
    joined = _JOINED.search(phrase)
    if joined and joined[1] in options and joined[2] in options and joined[1] != joined[2]:
        return f"{joined[1]} or {joined[2]}"
    leading = _LEADING.match(phrase)
    if leading and leading[1] in options:
        return leading[1]
    return _named(phrase, options)


def _named(sentence: str, options: Mapping[str, str]) -> str | None:
    """A bracketed letter, one behind "option", or the one option whose times or text the sentence has."""
    for pattern in (_BRACKETED, _NAMED):
        for match in pattern.finditer(sentence):
            if (letter := match[match.lastindex or 0].upper()) in options:
                return letter
    times = _times(sentence)
    same = [letter for letter, text in options.items() if _says(sentence, times, text)]
    return same[0] if len(same) == 1 else None


def _says(sentence: str, times: list[tuple[str, str]], option: str) -> bool:
    """Whether a sentence has an option's span of time (and no third time), or its text."""
    wanted = _times(option)
    if len(wanted) == 2:
        return times == wanted
    return option.lower() in sentence.lower()


def _times(text: str) -> list[tuple[str, str]]:
    return [(hour.lstrip("0"), half.lower()) for hour, half in _TIME.findall(text)]


def _options(question: Question) -> Mapping[str, str]:
    options: Mapping[str, str] = question.extra.get("options") or dict.fromkeys("ABCD", "\0")
    return options
