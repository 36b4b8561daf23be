"""Answers that are none: that no answer is right, and that it can't be told. One rule for all forms of an answer.

Saying that none is right is an answer, and a wrong one, where an answer always exists: an integer, a letter, a truth.
Saying that it can't be told is the label Uncertain of a truth, and no answer elsewhere.
"""

from __future__ import annotations

import re

from mixprec.evaluate.scoring.text import plain
from mixprec.evaluate.scoring.verdict import Candidate

#: The answer that is none of those offered.
NO_OPTION = "none of the options"
DECLINED = "declines to answer"
#: Words of a phrase that only denies.
_FEW = 8

_THING = (
    r"(?:options?|choices?|answers?|times?|slots?|windows?|intervals?|periods?|time slots?|time windows?|solutions?)"
)
_QUALITY = (
    r"(?:correct|valid|possible|feasible|suitable|available|given|provided|listed|such|free|real|integer|viable|right)"
)
_DENIES = re.compile(
    rf"^\W*none\W*$|\bnone of (?:the|these|those|them|its)\b(?! (?:other|others|premises|people|witnesses)\b)"
    rf"|\bno (?:{_QUALITY} ){{1,3}}{_THING}\b(?! but\b)"
    rf"|(?:^\W*|\bthat )(?:there (?:is|are|was|were) )?no {_THING}\b(?!\s+(?:but|conflicts?|zones?|left)\b)"
    rf"|\bthere (?:is|was|are|were) no {_THING} (?:when|that|which|at which|in which|for)\b(?! (?:conflict|overlap))"
    rf"|(?:\bnot|n't|\bcannot)\b[^.,;]{{0,60}}\b(?:any|one) of (?:the|these) (?:{_QUALITY} )?{_THING}\b"
    rf"|\bnot (?:listed|among|in|one of) (?:any of )?(?:the|these|those)? ?(?:\w+ )?{_THING}\b"
    rf"|\b(?:answer|time) is not (?:listed|given|provided|there)\b"
    rf"|^\W*(?:does not exist|no answer|never|not possible|impossible)\W*$"
    r"|以上(?:都|皆)(?:不|非)|没有(?:正确|可能)|无解|^\W*(?:emptyset|varnothing)\W*$|^\W*∅\W*$",
    re.I,
)
_CANNOT_TELL = re.compile(
    r"\b(?:can\s?not|can't|could not|couldn't|unable to|not able to|impossible to|not possible to|difficult to)\s+"
    r"(?:be )?(?:\w+ly )?"
    r"(?:determine|be sure|tell|know|answer|conclude|decide|say|infer|establish|identif|solve|give|provide)"
    r"|\b(?:not|in|un)\s?(?:determinable|determined|decidable|determinate)\b|\bindetermina(?:te|ble)\b"
    r"|\b(?:not enough|insufficient|no sufficient|lack(?:s|ing)?(?: of)?(?: sufficient| enough)?|too little) "
    r"(?:\w+ )?(?:information|data|details?|evidence|context)\b"
    r"|\b(?:information|data|context|evidence) (?:\w+ )?(?:is|are) (?:insufficient|not sufficient|not enough|lacking)\b"
    r"|\bi (?:do not|don't) know\b|无法(?:确定|判断|得出|回答)|不能确定|信息不足",
    re.I,
)
#: Words that say so where nothing else stands with them.
_ALONE = re.compile(
    r"^\W*(?:(?:it|this|that|the answer|the conclusion|the statement) (?:is|remains) )?"
    r"(?:unknown|unclear|uncertain|ambiguous|inconclusive|undecided|n/a|"
    r"not (?:known|available|specified|given|provided|clear|certain|stated)|不确定|未知)\W*$",
    re.I,
)


def denies(text: str) -> bool:
    """Whether a phrase says that no answer is right: "none of the given times", "no solution"."""
    return bool(_DENIES.search(plain(text).replace("’", "'")))


def only_denies(text: str) -> bool:
    """Whether a phrase says nothing else: it is short, or begins with it."""
    short = len(text.split()) <= _FEW or plain(text).lower().lstrip(" \"'(").startswith("none of ")
    return short and denies(text)


def cannot_tell(text: str) -> bool:
    """Whether a phrase says that it can't be told: "not determinable", "not enough information"."""
    text = plain(text).replace("’", "'")
    return bool(_CANNOT_TELL.search(text) or _ALONE.match(text))


def refused(text: str, why: str) -> Candidate | None:
    """What a refusal counts as where an answer always exists; None where a phrase refuses nothing."""
    if denies(text):
        return Candidate(NO_OPTION, why)
    return Candidate(None, DECLINED) if cannot_tell(text) else None
