"""Answers of a few words (MuSiQue): what a label or bold type marks, else what the answer says beyond the question."""

from __future__ import annotations

import re

from mixprec.evaluate.benchmarks.schema import Question
from mixprec.evaluate.scoring.clauses import claimed
from mixprec.evaluate.scoring.labels import announced, labelled
from mixprec.evaluate.scoring.refusals import cannot_tell, only_denies
from mixprec.evaluate.scoring.shorten import beyond, focus, kind_of, shortened, tidy, typed, without_aside
from mixprec.evaluate.scoring.stems import anchors, content
from mixprec.evaluate.scoring.text import bold, boxed, plain, sentences, without_concession
from mixprec.evaluate.scoring.verdict import Candidate

_DECLINES = re.compile(
    r"\b(?:can\s?not|can't|could not|couldn't|unable to|not able to|impossible to|difficult to|challenging to)\s+"
    r"(?:\w+\s+){0,3}?"
    r"(?:answer|provide|determined?|identify|identified|find|found|give|locate|confirm|verify|verified|assist|access)"
    r"|(?:\bnot|n't)\s+(?:\w+\s+){0,2}?"
    r"(?:disclosed|available|known(?!\s+(?:for|as))|specified|clear|provided|mentioned|documented|recorded|aware)\b"
    r"|\b(?:do not|don't) (?:know|have)\b"
    r"|(?<!for )\b(?:no|not enough|insufficient|more) (?:\w+ )?"
    r"(?:information|context|details?|data|records?|evidence)\b"
    r"|\bno such \w+|\b(?:is|are) insufficient\b|\bnot (?:possible|able) to\b"
    r"|\bi(?:'m| am) (?:sorry|not sure|an ai)\b|\bas an ai\b|\bsorry\b[^.]*\b(?:can't|cannot)\b"
    r"|\b(?:is|are|was|remains?|seems?|appears?)\s+(?:\w+\s+)?(?:unclear|unknown|ambiguous|undetermined)\b",
    re.I,
)
_EMPTY = re.compile(r"unknown|n/?a|none|unclear|undetermined|uncertain|not (?:\w+ )?(?:known|available)", re.I)
_CONCLUDES = re.compile(
    r"^\W*(?:so|thus|therefore|hence|in conclusion|in summary|finally|to conclude|"
    r"for the purposes? of this (?:answer|question))\b",
    re.I,
)
_BARE_NUMBER = re.compile(r"[\d\s.,/–-]+")
#: What others get wrong.
_WRONGLY = re.compile(r"\b(?:wrongly|incorrectly|mistakenly|erroneously|falsely|contrary to|forbidden)\b", re.I)
#: A remark on the answer, as "(Word count: 2)".
_NOTE = re.compile(r"\([^()]*\)\.?")
_LONGEST_SENTENCE = 700


def strong(text: str, question: Question) -> Candidate | None:
    """A box, a label, or bold type in the last paragraph that has some; None where a label says there is no answer."""
    for found in map(without_aside, boxed(text)):
        if found:
            return None if says_nothing(found) else Candidate(beyond(found, question.asked), "boxed")
    for each in labelled(text):
        marked = _marked(each.text, question)
        if not marked and says_nothing(each.text):
            return None
        if found := marked or shortened(each.text, question.asked):
            return Candidate(found, "labelled")
    for paragraph in reversed(text.split("\n\n")):
        if marked := _marked(paragraph, question):
            return Candidate(marked, "bold")
    return None


def weak(text: str, question: Question) -> Candidate | None:
    """The concluding sentence, or the one that shares most with the question; shortened.

    None where that sentence or the last one declines, and where a label or a box says that there is no answer.
    """
    said = [each for line in sentences(text) if content(each := without_concession(plain(line)[:_LONGEST_SENTENCE]))]
    said = [each for each in said if not _NOTE.fullmatch(each)] or said
    if not said or says_nothing(said[-1]) or _refuses(text):
        return None
    said = [each for each in said if not _WRONGLY.search(each)] or said
    last = [each for each in said if _CONCLUDES.match(each)][-1:]
    chosen = last[0] if last else _dated(said, question.asked) or _last_step(said, anchors(content(question.asked)))
    if says_nothing(chosen):
        return None
    found = shortened(_CONCLUDES.sub("", chosen), question.asked)
    return Candidate(found, "sentence") if found else None


def _dated(said: list[str], asked: str) -> str | None:
    """Where a date or number is asked for, the last of the sentences with one that share most with the question."""
    words = content(focus(asked))
    found = [each for each in said if typed(claimed(each), asked)]
    return max(reversed(found), key=lambda each: len(content(each) & words), default=None)


def _last_step(said: list[str], asked: frozenset[str]) -> str:
    """The last sentence with a word of the question, or its like, that no sentence before has: there a chain arrives.

    What stands behind it only tells more. The last sentence where none has any of the question's words.
    """
    chosen, heard = said[-1], frozenset[str]()
    for each in said:
        if new := (content(each) & asked) - heard:
            chosen, heard = each, heard | new
    return chosen


def declines(text: str) -> bool:
    """Whether the end of a text says that it can't answer, in a sentence, a label or a box."""
    end = plain(text[-4 * _LONGEST_SENTENCE :])
    return bool(_DECLINES.search(end)) or any(map(says_nothing, sentences(end)[-1:])) or _refuses(text)


def _refuses(text: str) -> bool:
    """Whether a label or a box says that there is no answer."""
    return any(says_nothing(phrase) for phrase, _ in announced(text))


def says_nothing(label: str) -> bool:
    """Whether a text that should be the answer only says that there is none, or that it can't be told."""
    return bool(
        _DECLINES.search(plain(label)) or _EMPTY.fullmatch(tidy(label)) or cannot_tell(label) or only_denies(label)
    )


def _marked(text: str, question: Question) -> str | None:
    """The last bold text that isn't of the question's own words, else one that ends the text.

    One of the kind that was asked for goes before: a date for a "when"; for a "who" or "what" a name before a number.
    """
    asked = content(question.asked)
    found = [each for marked in bold(claimed(text)) if (each := without_aside(marked)) and not says_nothing(each)]
    ends = found[-1] if found and text.rstrip(" .\n").endswith("**") and content(found[-1]) else None
    new = [each for each in found if not content(each) <= asked]
    wanted = kind_of(question.asked)
    if wanted and (new or ends) and not any(map(wanted.search, new)):
        said = typed(claimed(plain(text[-_LONGEST_SENTENCE:])), question.asked)
        if said and not content(said) <= asked:
            return said
    fitting = [each for each in new if (wanted.search(each) if wanted else not _BARE_NUMBER.fullmatch(each))]
    return beyond(fitting[-1], question.asked) if fitting else new[-1] if new else ends
