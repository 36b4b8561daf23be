"""Answers that are integers (AIME): numbers in boxes, behind labels, and at the end of what the model concludes."""

from __future__ import annotations

import re

from mixprec.evaluate.benchmarks.schema import Question
from mixprec.evaluate.scoring import arithmetic
from mixprec.evaluate.scoring.labels import labelled
from mixprec.evaluate.scoring.refusals import DECLINED, cannot_tell, refused
from mixprec.evaluate.scoring.text import bold, boxed, plain, sentences
from mixprec.evaluate.scoring.verdict import Candidate

_THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\}|\s)(?=\d{3}(?:\D|$))")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:\s*/\s*\d+)?(?![\w]*\d)")
_WHOLE = re.compile(r"-?\d+")
_UNITS = re.compile(
    r"\^?\s*(?:\{\s*)?\\circ\s*\}?|°|\\?%|\\?(?<!\\b)p?mod\b\s*\{?\s*\d+\}?"
    r"|(?<![A-Za-z])(?:\\text\{)?\s?[a-z]{2,}\}?\^\{?[23]\}?"  # cm^2
    r"|\^\{?\\(?:text|mathrm)\{(?:st|nd|rd|th)\}\}?"
)
#: Characters of a formula that is computed.
_LONGEST_FORMULA = 1_000
#: Words of a formula: no part of what it computes.
_IN_WORDS = re.compile(r"\\(?:text|mathrm|textrm|mbox)\s*\{[^{}\d]*\}|(?<![\\A-Za-z])[A-Za-z]{2,}")
#: What makes another number of the one beside it; a letter may be a unit.
_MAKES = re.compile(
    r"\\(?:sqrt|pi|log|ln|sin|cos|tan|sum|prod|int|infty|binom|choose|lfloor|lceil|bmod|gcd|pm|cdot|times|max|min|theta)"
    r"(?![a-z])|[!^±π√]|\d[*·×]\d|\d\s?(?![cdghlms](?![a-z]))[a-z](?![A-Za-z])"
)
#: Several values: "72 or 73", "72–73", "m = 8, n = 9".
_SEVERAL = re.compile(
    r"\d\s*(?:\\text\s*\{\s*or\s*\}|\bor\b|\\(?:lor|vee)\b|[–—])\s*(?:[a-z]\s*=\s*)?-?\d+\D*$"
    r"|^\W*[a-z]\s*=\s*-?\d+\s*(?:,|\\text\s*\{\s*and\s*\}|\band\b|\\quad)+\s*[a-z]\s*=\s*-?\d+\W*$"
)
#: A formula in a sentence, and a sum or product that stands there bare.
_FORMULA = re.compile(r"\$([^$\n]{1,120})\$|\\\(([^\n\\]*(?:\\(?![()])[^\n\\]*){0,20})\\\)")
_BARE = re.compile(r"(?<![\w.^/*-])\d{1,9}(?:\s*(?:[+·×]|\\cdot|\\times)\s*\d{1,9}){1,20}(?![\w.^/*-]*\d)")
#: Behind "so" stands what a sentence arrives at.
_SO = re.compile(r",?\s+(?:so|thus|hence|therefore)\b", re.I)
#: What leads from one side of a calculation to the next.
_STEP = re.compile(r"=|\\approx|≈|\\implies|\\(?:Long)?[Rr]ightarrow|\\to\b|[⇒→]")
#: A paragraph that holds a number or a formula, without words.
_ALONE = re.compile(r"(?!.*[A-Za-z]{3}).{1,80}")
#: A text that ends in what something is.
_STATES = re.compile(r"\b(?:is|are|be|to|get|obtain|have|find|takes?|took|needs?|gives?)\s+(\d+)(?: [a-z]+)?\W*$")
#: What a statement only adds.
_ADDED = re.compile(r",\s+(?:including|of which|which includes)\b")
_CONCLUDES = re.compile(
    r"\b(?:thus|therefore|hence|so|answer|total|sum|product|finally|conclude|result|equals?)\b", re.I
)


def strong(text: str, question: Question) -> Candidate | None:
    """The last box or label, whichever stands later; a box that holds no integer gives way to what is said behind."""
    label = next(((found, each.start) for each in labelled(text) if (found := _of_label(each.text))), None)
    content = next(boxed(text), None)
    if content is None:
        return label[0] if label else None
    value = in_box(content)
    if _WHOLE.fullmatch(value):
        return Candidate(value, "boxed")
    box = text.rfind("boxed")
    behind = label[0] if label and label[1] > box else weak(text[box:], question)
    if behind and behind.answer and _WHOLE.fullmatch(behind.answer):
        return behind
    return Candidate(None, DECLINED) if cannot_tell(content) else Candidate(value, "boxed")


def _of_label(text: str) -> Candidate | None:
    value = in_phrase(text)
    return Candidate(value, "labelled") if value else refused(next(iter(sentences(text)), ""), "labelled")


def weak(text: str, question: Question) -> Candidate | None:
    """A number in bold in the last paragraph, or the last number of a concluding sentence there."""
    paragraph = text.strip().rpartition("\n\n")[2]
    if _ALONE.fullmatch(plain(paragraph)) and (value := in_phrase(paragraph)):
        return Candidate(value, "a number alone")
    for content in reversed(bold(paragraph)):
        if value := in_phrase(content):
            return Candidate(value, "bold")
    for sentence in reversed(sentences(paragraph)[-3:]):
        if _CONCLUDES.search(sentence) and (value := in_phrase(sentence)):
            return Candidate(value, "concluding sentence")
    sentence = "".join(sentences(paragraph)[-1:])
    if said := _STATES.search(_ADDED.split(plain(sentence), maxsplit=1)[0]):
        return Candidate(_value(said[1]), "last statement")
    return refused(sentence, "last statement")


def in_box(content: str) -> str:
    """A box's value: that of the last side of its ``=`` or arrows that has one, without units; arithmetic is computed.

    Where there is none, or are several, the content, made plain.
    """
    whole = _tidy(content)
    if _SEVERAL.search(content):
        return whole
    for side in reversed(_STEP.split(content)):
        if found := _computed(side) or _only_number(side):
            return found
    return whole or "?"


def _computed(formula: str) -> str | None:
    """The integer that a formula comes to, units and words aside; None where it isn't one."""
    if len(formula) > _LONGEST_FORMULA:
        return None
    bare = _UNITS.sub(" ", formula.replace("{,}", ",").replace(r"\,", " "))
    bare = _IN_WORDS.sub(" ", bare)
    found = arithmetic.value(bare)
    if found is None:
        found = arithmetic.value(_THOUSANDS.sub("", bare))
    return str(found) if found is not None and found.denominator == 1 else None


def _only_number(side: str) -> str | None:
    tidy = _tidy(side)
    numbers = _NUMBER.findall(tidy)
    return _value(numbers[0]) if len(numbers) == 1 and "^" not in tidy and not _MAKES.search(tidy) else None


def in_phrase(phrase: str) -> str | None:
    """The number that a phrase states: the one behind its last ``=``, else its first, of its first sentence.

    A formula that comes to none stands for itself where there is no other. None where nothing is stated.
    """
    sentence = next(iter(sentences(phrase)), "")
    if _SEVERAL.search(sentence):
        return _tidy(sentence)
    if not _IN_WORDS.search(sentence) and (found := _computed(sentence.strip(" .!*"))):
        return found
    tidy, open_ = _with_values(sentence)
    for parts, which in ((_ADDED, 0), (_SO, -1)):
        said = parts.split(tidy)[which]
        tidy = said if _NUMBER.search(said) else tidy
    clause, equals, right = tidy.rpartition("=")
    numbers = _NUMBER.findall(right)
    if equals and not numbers:
        numbers = _NUMBER.findall(clause)[-1:]
    if not numbers:
        return open_
    leads = tidy.startswith(numbers[0]) or bool(equals)
    return _value(numbers[0] if leads else numbers[-1])


def _with_values(sentence: str) -> tuple[str, str | None]:
    """A sentence made plain with its formulas computed, and the last formula that comes to no number."""
    left = []

    def values(match: re.Match[str]) -> str:
        formula = match[1] or match[2]
        sides = [_computed(side) or side for side in _STEP.split(formula)]
        if len(sides) == 1 and sides[0] == formula and _MAKES.search(formula):
            left.append(_tidy(formula))
            return " "
        return f" {' = '.join(sides)} "

    sentence = _BARE.sub(
        lambda match: _computed(match[0]) or match[0], arithmetic.spelt(_FORMULA.sub(values, sentence))
    )
    return _tidy(sentence), left[-1] if left else None


def _tidy(text: str) -> str:
    return _THOUSANDS.sub("", plain(_UNITS.sub(" ", text.replace("{,}", ","))))


def _value(number: str) -> str:
    """A number as it is compared: without leading zeros, a fraction or decimal that is whole as an integer."""
    top, divided, bottom = (part.strip() for part in number.partition("/"))
    if "." not in number and not divided:
        return str(int(number[:_LONGEST])) if len(number) <= _LONGEST else number
    if divided and "." not in top and int(bottom[:_LONGEST]) and int(top[:_LONGEST]) % int(bottom[:_LONGEST]) == 0:
        return str(int(top[:_LONGEST]) // int(bottom[:_LONGEST]))
    whole, _, decimals = top.partition(".")
    return _value(whole) if not divided and not decimals.strip("0") else number


#: Digits read as a number; longer ones are no answers.
_LONGEST = 30
