"""Exact match and F1 on words, normalised as SQuAD does (Rajpurkar et al. 2016), and MuSiQue's own scorer with it."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
#: A time of day has one spelling: "5:00 AM", "5 a.m.", "5am" and "5 o'clock in the morning" are the same.
_TIME = re.compile(r"\b(\d{1,2})(?::00)?\s*([ap])\.?\s?m\b")
_OF_DAY = re.compile(r"\b(\d{1,2})(?::00)?(?:\s*o['’]clock)?\s+in the (?:(morning)|afternoon|evening)\b")


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and surplus blanks; times of day in one spelling."""
    text = _OF_DAY.sub(lambda match: f"{match[1]} {'am' if match[2] else 'pm'}", text.lower())
    text = _TIME.sub(r"\1\2m", text)
    return " ".join(_ARTICLES.sub(" ", text.translate(_PUNCTUATION)).split())


def exact_match(answer: str, golds: Iterable[str]) -> float:
    """1.0 where the answer is one of the golds once both are normalised."""
    normalised = normalise(answer)
    return float(any(normalised == normalise(gold) for gold in golds))


def f1(answer: str, golds: Iterable[str]) -> float:
    """The best F1 over the golds, words counted with multiplicity; two empty texts agree."""
    return max(_f1(normalise(answer).split(), normalise(gold).split()) for gold in golds)


def _f1(answer: list[str], gold: list[str]) -> float:
    if not answer or not gold:
        return float(answer == gold)
    common = sum((Counter(answer) & Counter(gold)).values())
    return 2 * common / (len(answer) + len(gold))
