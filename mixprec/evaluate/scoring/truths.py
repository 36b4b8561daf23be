"""True, False or Uncertain (FOLIO): words at their boundaries, negations, and sentences that only suppose."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mixprec.evaluate.benchmarks.schema import Question
from mixprec.evaluate.scoring.labels import labelled
from mixprec.evaluate.scoring.text import bold, boxed, plain, sentences
from mixprec.evaluate.scoring.verdict import Candidate

_SUBJECT = re.compile(r"\b(?:conclusion|statement|claim|hypothesis|proposition|assertion|argument|it)\b", re.I)
_SUPPOSED = re.compile(
    r"\b(?:if|when|suppose|supposing|assume|assuming|unless|case|whether|could|might|would(?! (?:say|conclude)))\b",
    re.I,
)
_EITHER = re.compile(
    r"\b(?:true|false|uncertain)\b(?:\s*(?:,|/|\bor\b|\band\b)+\s*\b(?:true|false|uncertain)\b)+", re.I
)
#: "true only if …", "would be true": no verdicts.
_CONDITIONAL = re.compile(r"\w+[*\"']*,?\s+(?:only\s+)?(?:if|when|unless|in\s+(?:the|this|that)\s+case)\b", re.I)
_WOULD = re.compile(r"\b(?:would|could|might|may|can)\s+(?:\w+\s+)?be\s+(?:\w+\s+)?$", re.I)
_NOT = r"(?:\bnot|n't|\bnever|\bcannot|\bno longer|\bneither|\bnor)\b"

_CANNOT = re.compile(
    r"(?:\bcan\s?not|\bcan't|\bcouldn't|\bcould not|\bunable to|\bnot possible to|\bimpossible to|\bnot able to|"
    r"\b(?:do not|don't|does not|doesn't) (?:have|give|provide|contain) enough)\b[^.;\n]{0,120}"
    r"\b(?:determin|conclu|confirm|infer|establish|verif|deduc|ascertain|say|tell|know|prove|decide|inform|definitive)",
    re.I,
)
_UNCERTAIN = re.compile(
    r"(?<!not )\b(?:uncertain|unknown|undetermined|undeterminable|indeterminate|inconclusive|undecided|ambiguous|"
    r"unprovable|"
    r"neither (?:definitively |necessarily )?(?:true nor false|false nor true|proven nor|provable nor)|"
    r"(?:in|not )sufficient|lacks? (?:of )?(?:sufficient )?information)\b|\bnot enough (?:information|evidence)\b|"
    r"\bnot (?:necessarily|definitively|certainly|certain|always|guaranteed|clear|known|specified)\b",
    re.I,
)
_PLAIN = {"True": re.compile(r"\btrue\b", re.I), "False": re.compile(r"\b(?:false|untrue)\b", re.I)}
_LIKE = {
    "True": re.compile(r"\b(?:correct|valid|supported|proven|entailed|justified|holds|follows?|confirmed)\b", re.I),
    "False": re.compile(r"\b(?:incorrect|invalid|wrong|contradict(?:s|ed|ory)|disproven|refuted|negated)\b", re.I),
}

#: Characters of a sentence that are looked at.
_LONGEST = 700


def strong(text: str, question: Question) -> Candidate | None:
    """A box, a label, or the last sentence that says what the conclusion is."""
    for content in boxed(text):
        if truth := of_phrase(plain(content), question):
            return Candidate(truth, "boxed")
    for each in labelled(text):
        if truth := of_phrase(plain(each.text), question):
            return Candidate(truth, "labelled")
    said = [plain(sentence)[:_LONGEST] for sentence in sentences(text)]
    return _stated(said, question)


def _stated(said: list[str], question: Question) -> Candidate | None:
    """The last sentence that calls the conclusion true, false or uncertain; else one that says so in other words."""
    for sentence in reversed(said):
        if truth := _of_conclusion(sentence):
            return Candidate(truth, "stated")
    for sentence in reversed(said):
        subject = _SUBJECT.search(sentence)
        supposed = subject is None or _SUPPOSED.search(sentence, 0, subject.start())
        if subject and not supposed and (truth := _like(sentence[subject.end() :])):
            return Candidate(truth, "stated in other words")
    return None


def weak(text: str, question: Question) -> Candidate | None:
    """A verdict in bold; the conclusion or its negation said again at the end; "cannot be determined"; a last word."""
    for content in reversed(bold(text)):
        if len(content.split()) <= 3 and (truth := _word(content)):
            return Candidate(truth, "bold")
    said = [plain(sentence)[:_LONGEST] for sentence in sentences(text)]
    for sentence in reversed(said[-2:]):
        if truth := _restated(sentence, question):
            return Candidate(truth, "conclusion restated")
    for sentence in reversed(said):
        if _CANNOT.search(sentence):
            return Candidate("Uncertain", "cannot be determined")
    for sentence in reversed(said[-2:]):
        if not _SUPPOSED.search(sentence) and (truth := _word(sentence)):
            return Candidate(truth, "last word")
    return None


def of_phrase(phrase: str, question: Question) -> str | None:
    """What a short text behind a label says: a verdict's word, else other words for it, else the conclusion again."""
    return _word(phrase) or _like(phrase) or _restated(phrase, question)


def _of_conclusion(sentence: str) -> str | None:
    """The verdict of a sentence on the conclusion, None where it only supposes or speaks of something else."""
    for subject in _SUBJECT.finditer(sentence):
        if _SUPPOSED.search(sentence, 0, subject.start()):
            return None
        if truth := _word(sentence[subject.end() :]):
            return truth
    return None


def _word(text: str) -> str | None:
    """The first of true, false and uncertain that is not negated; "cannot be said to be true" is uncertain."""
    text = _EITHER.sub(" ", text) if not re.search(r"\bneither\b", text, re.I) else text
    if _CANNOT.search(text) or _UNCERTAIN.search(text):
        first = min((found.start() for found in (_CANNOT.search(text), _UNCERTAIN.search(text)) if found), default=0)
        before = _first_plain(text[:first])
        return before or "Uncertain"
    return _first_plain(text)


def _first_plain(text: str) -> str | None:
    found = sorted((match.start(), truth) for truth, word in _PLAIN.items() for match in word.finditer(text))
    for start, truth in found:
        if _CONDITIONAL.match(text, start) or _WOULD.search(text[:start]):
            continue
        if not re.search(_NOT + r"(?:[\s*\"']+\w+){0,2}[\s*\"'(]*$", text[:start], re.I):
            return truth
        if truth == "True" and re.search(r"(?:not|n't)\s(?:\w+\s)?be\W*$|(?:\bnot|n't)\W*$", text[:start], re.I):
            return "False"
    return None


def _like(text: str) -> str | None:
    """Other words: valid, supported, contradicted; negated they leave it open."""
    for truth, word in _LIKE.items():
        if match := word.search(text):
            negated = re.search(_NOT + r"(?:[\s*\"']+\w+){0,2}[\s*\"'(]*$", text[: match.start()], re.I)
            return "Uncertain" if negated and truth == "True" else None if negated else truth
    return None


_NEGATIONS = frozenset({"not", "no", "never", "cannot", "neither", "nor"})
_IDLE = frozenset({"a", "an", "the", "is", "are", "was", "be", "do", "does", "did", "has", "have", "therefore", "thus"})
_IDLE |= frozenset(
    {
        "conclusion",
        "answer",
        "final",
        "so",
        "hence",
        "must",
        "that",
        "based",
        "on",
        "given",
        "premises",
        "can",
        "will",
        "or",
        "both",
    }
)
#: Shared words of two sentences, of all of both, that make them say the same.
_SAME = 0.8


def _restated(sentence: str, question: Question) -> str | None:
    """True where a sentence says the conclusion again, False where it says its negation."""
    conclusion = question.extra.get("conclusion")
    if not conclusion:
        return None
    ours, theirs = list(_words(sentence)), list(_words(str(conclusion)))
    shared, every = set(ours) - _NEGATIONS, set(theirs) - _NEGATIONS
    if not every or len(shared & every) < _SAME * len(shared | every):
        return None
    odd = sum(word in _NEGATIONS - {"nor"} for word in ours) - sum(word in _NEGATIONS - {"nor"} for word in theirs)
    return "False" if odd % 2 else "True"


def _words(text: str) -> Iterator[str]:
    for word in re.findall(r"[a-z0-9]+", text.lower().replace("n't", " not").replace("’", "'")):
        if word not in _IDLE:
            yield word if word in _NEGATIONS or len(word) < 4 else word.removesuffix("s")
