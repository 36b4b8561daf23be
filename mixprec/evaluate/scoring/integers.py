"""Answers that are integers (AIME): numbers in boxes, behind labels, and at the end of what the model concludes."""

from __future__ import annotations

import re

from mixprec.evaluate.benchmarks.schema import Question
from mixprec.evaluate.scoring.labels import labelled
from mixprec.evaluate.scoring.text import bold, boxed, plain, sentences
from mixprec.evaluate.scoring.verdict import Candidate

_THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\}|\s)(?=\d{3}(?:\D|$))")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:\s*/\s*\d+)?(?![\w]*\d)")
_WHOLE = re.compile(r"-?\d+")
_UNITS = re.compile(
    r"\^?\s*\{?\s*\\circ\s*\}?|°|\\?%|\\?p?mod\b\s*\{?\s*\d+\}?"
    r"|(?<![A-Za-z])(?:\\text\{)?\s?[a-z]{2,}\}?\^\{?[23]\}?"  # cm^2
)
#: Behind "so" stands what a sentence arrives at.
_SO = re.compile(r",?\s+(?:so|thus|hence|therefore)\b", re.I)
#: What leads from one side of a calculation to the next.
_STEP = re.compile(r"=|\\approx|≈|\\implies|\\(?:Long)?[Rr]ightarrow|\\to\b|[⇒→]")
#: A paragraph that holds a number or a formula, without words.
_ALONE = re.compile(r"(?!.*[A-Za-z]{3}).{1,80}")
#: A text that ends in what something is.
_STATES = re.compile(r"\b(?:is|are|be|to|get|obtain|have|find)\s+(\d+)\W*$")
_CONCLUDES = re.compile(
    r"\b(?:thus|therefore|hence|so|answer|total|sum|product|finally|conclude|result|equals?)\b", re.I
)


def strong(text: str, question: Question) -> Candidate | None:
    """The last box or label, whichever stands later; a box that holds no integer gives way to what is said behind."""
    label = next(((found, each.start) for each in labelled(text) if (found := in_phrase(each.text))), None)
    content = next(boxed(text), None)
    if content is None:
        return Candidate(label[0], "labelled") if label else None
    value = in_box(content)
    if _WHOLE.fullmatch(value):
        return Candidate(value, "boxed")
    box = text.rfind("boxed")
    behind = Candidate(label[0], "labelled") if label and label[1] > box else weak(text[box:], question)
    return behind if behind and _WHOLE.fullmatch(behind.answer) else Candidate(value, "boxed")


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
    if said := _STATES.search(plain(paragraph)):
        return Candidate(_value(said[1]), "last statement")
    return None


def in_box(content: str) -> str:
    """A box's value: the one number behind the last ``=`` or arrow that has one, without units.

    Where there is none, the content, made plain.
    """
    content = _tidy(content)
    for side in reversed(_STEP.split(content)):
        numbers = _NUMBER.findall(side)
        if len(numbers) == 1 and "^" not in side:
            return _value(numbers[0])
    return content or "?"


def in_phrase(phrase: str) -> str | None:
    """The number that a phrase states: the one behind its last ``=``, else its first, of its first sentence.

    None where it holds none.
    """
    sentence = next(iter(sentences(phrase)), "")
    tidy = _tidy(sentence)
    said = _SO.split(tidy)[-1]
    tidy = said if _NUMBER.search(said) else tidy
    clause, equals, right = tidy.rpartition("=")
    numbers = _NUMBER.findall(right)
    if equals and not numbers:
        numbers = _NUMBER.findall(clause)[-1:]
    if not numbers:
        return None
    leads = tidy.startswith(numbers[0]) or bool(equals)
    return _value(numbers[0] if leads else numbers[-1])


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
