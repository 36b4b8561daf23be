"""True, False or Uncertain (FOLIO): verdicts on the conclusion, and sentences that only suppose."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator

from mixprec.evaluate.benchmarks.schema import Question
from mixprec.evaluate.scoring.labels import announced
from mixprec.evaluate.scoring.marks import marked
from mixprec.evaluate.scoring.polarity import (
    done_to_conclusion,
    leaves_open,
    of_predicate,
    only_said,
    other_words,
    verdicts,
)
from mixprec.evaluate.scoring.refusals import NO_OPTION, cannot_tell, only_denies
from mixprec.evaluate.scoring.text import bold, plain, sentences, without_concession
from mixprec.evaluate.scoring.verdict import Candidate

#: What a verdict may be on, the surest first; "it is true that …" may speak of anything.
_SUBJECTS = (
    re.compile(r"\bconclusion\b", re.I),
    re.compile(
        r"\b(?:statement|claim|hypothesis|proposition|assertion|argument|"
        r"it(?!\W+(?:i?s )?(?:\w+ )*(?:that|whether|if)\b))\b",
        re.I,
    ),
    re.compile(r"\bit\b", re.I),
)
#: Subjects of one sentence that are looked at.
_MOST_SUBJECTS = 50
_ANY_SUBJECT = re.compile("|".join(each.pattern for each in _SUBJECTS[:2]), re.I)
#: A letter or a yes or no, in a box or behind a label.
_SHORT = re.compile(r"^\W*(?:(?P<True>T|yes)|(?P<False>F|no)|(?P<Uncertain>U))(?:$|[.,;:)}\]])", re.I)
_SUPPOSED = re.compile(
    r"\b(?:if|when|suppose|supposing|assume|assuming|unless|case|whether|could|might|would(?! (?:say|conclude)))\b",
    re.I,
)
#: "The premises don't say whether he barks, so …": what follows is no supposition.
_ASKED = re.compile(r"(?<=\w )(?:whether|if)\b[^,;]*[,;]\s*(?:and\s+)?(?:so|therefore|thus|hence)\b", re.I)
#: What would hold if a premise were missing: "Without it, it would be uncertain."
_COUNTER = re.compile(
    r"^\W*(?:without (?:it|this|that|them|(?:the )?(?:\w+ )?premise(?: \d+)?)\b|otherwise\b|(?:were|had) it not\b),?"
    r"[^,;]{0,80},?[^,;]{0,40}\bwould\b[^,;]{0,80}(?:$|[,;]\s*but\b)",
    re.I,
)
#: A sentence that is nothing but a verdict.
_ALONE = re.compile(r"^\W*(true|false|uncertain)\W*$", re.I)
#: A verdict that stands in front, with a remark behind.
_LEADS = re.compile(r"^\W*(true|false|uncertain)\W*?(?:\.\s|\(|[;–—]|\s-\s|$)", re.I)
#: A list's item or a table's cell that is a verdict: "(C) Uncertain".
_ITEM = re.compile(r"^\W*(?:[A-C1-3][).:]\s*)?(true|false|uncertain)\W*$", re.I)
#: Characters of a sentence that are looked at.
_LONGEST = 700


def strong(text: str, question: Question) -> Candidate | None:
    """A box, a label, or the last sentence that says what the conclusion is."""
    for phrase, why in announced(text):
        if truth := _of_marked(phrase, question):
            return Candidate(truth, why)
    if rows := marked(text, _of_label):
        one = Candidate(rows.good[0], "the one label marked") if len(rows.good) == 1 else None
        behind = _of_sentences(rows.behind, question)
        return behind or one or _of_sentences(rows.before, question) or Candidate(None, "several labels are marked")
    return _of_sentences(text, question)


def _of_label(label: str) -> str | None:
    """The truth that a list's item or a table's cell is about."""
    alone = _ITEM.match(label)
    return alone[1].capitalize() if alone else None


def _of_marked(phrase: str, question: Question) -> str | None:
    """What a box or label says. "No valid option" is no word for valid."""
    denied = _of_refusal(phrase) if not verdicts(plain(phrase)) else None
    return denied or of_phrase(plain(phrase), question)


def _of_refusal(phrase: str) -> str | None:
    """That no label is right is an answer, and a wrong one; that it can't be told is a label of its own."""
    if only_denies(phrase):
        return NO_OPTION
    return "Uncertain" if cannot_tell(phrase) else None


def _of_sentences(text: str, question: Question) -> Candidate | None:
    """The last sentence that calls the conclusion true, false or uncertain; else one that says so in other words."""
    said = _sentences(text, question)
    if said and (last := _ALONE.match(said[-1])):
        return Candidate(last[1].capitalize(), "last word")
    for subjects in _SUBJECTS:
        for sentence in reversed(said):
            if truth := _of_conclusion(sentence, subjects):
                return Candidate(truth, "stated")
    for sentence in reversed(said):
        subject = _ANY_SUBJECT.search(sentence)
        if not subject or _supposes(sentence[: subject.start()]):
            continue
        if truth := other_words(sentence[subject.end() :]) or done_to_conclusion(sentence):
            return Candidate(truth, "stated in other words")
    return None


def weak(text: str, question: Question) -> Candidate | None:
    """A verdict in bold; the conclusion or its negation said again; "cannot be determined"; a last word."""
    for content in reversed(bold(text)):
        found = verdicts(content) if len(content.split()) <= 3 else []
        if truth := next(iter(found), None) or _of_refusal(content):
            return Candidate(truth, "bold")
    whole = [plain(sentence)[:_LONGEST] for sentence in sentences(text)]
    for sentence in [*reversed(whole[-2:]), *whole[:1]]:
        if truth := _restated(sentence, question):
            return Candidate(truth, "conclusion restated")
    if any(map(leaves_open, whole)):
        return Candidate("Uncertain", "cannot be determined")
    for sentence in reversed(whole[-2:]):
        if not _SUPPOSED.search(sentence) and (truth := next(iter(verdicts(sentence)), None) or _of_refusal(sentence)):
            return Candidate(truth, "last word")
    return None


def of_phrase(phrase: str, question: Question) -> str | None:
    """What a short text behind a label says: a verdict, else other words for one, else the conclusion again."""
    bare = _without_conclusion(phrase, question)
    if leads := _LEADS.match(bare):
        return leads[1].capitalize()
    if truth := of_predicate(bare):
        return truth
    short = _SHORT.match(phrase)
    return short.lastgroup if short else other_words(bare) or _restated(phrase, question)


def _sentences(text: str, question: Question) -> list[str]:
    """The sentences made plain, without the conclusion where they quote it: its words are no verdicts."""
    said = sentences(_without_conclusion(text, question))
    told = [without_concession(plain(sentence)[:_LONGEST]) for sentence in said]
    return [claim for each in told if (claim := _COUNTER.sub("", each)) or not each]


def _without_conclusion(text: str, question: Question) -> str:
    conclusion = str(question.extra.get("conclusion") or "").strip(" .")
    return _quoted(conclusion).sub(" ", text) if conclusion else text


@functools.lru_cache(maxsize=1024)
def _quoted(conclusion: str) -> re.Pattern[str]:
    return re.compile(r"\s+".join(map(re.escape, conclusion.split())), re.I)


def _of_conclusion(sentence: str, subjects: re.Pattern[str]) -> str | None:
    """The verdict of a sentence on one of the subjects, None where it only supposes or speaks of something else."""
    for subject in itertools.islice(subjects.finditer(sentence), _MOST_SUBJECTS):
        if _supposes(sentence[: subject.start()]):
            return None
        if truth := of_predicate(sentence[subject.end() :]):
            return "Uncertain" if only_said(sentence[: subject.start()]) else truth
    return None


def _supposes(before: str) -> bool:
    """Whether the words before a subject make its sentence a supposition."""
    return bool(_SUPPOSED.search(_ASKED.sub(" ", before)))


_NEGATIONS = frozenset({"not", "no", "never", "cannot", "neither"})
#: Words that don't tell whether two sentences say the same.
_IDLE = frozenset(
    """
    a an the is are was be do does did has have therefore thus so hence must that based on given premises can will or
    both nor conclusion answer final it we conclude infer deduce follows logically definitely indeed
    """.split()  # noqa: SIM905
)
#: Shared words of two sentences, of all of both, that make them say the same.
_SAME = 0.8


def _restated(sentence: str, question: Question) -> str | None:
    """True where a sentence says the conclusion again, False where it says its negation."""
    conclusion = question.extra.get("conclusion")
    if not conclusion or leaves_open(sentence):
        return None
    ours, theirs = list(_words(sentence)), list(_words(str(conclusion)))
    shared, every = set(ours) - _NEGATIONS, set(theirs) - _NEGATIONS
    if not every or len(shared & every) < _SAME * len(shared | every):
        return None
    odd = sum(word in _NEGATIONS for word in ours) - sum(word in _NEGATIONS for word in theirs)
    return "False" if odd % 2 else "True"


def _words(text: str) -> Iterator[str]:
    for word in re.findall(r"[a-z0-9]+", text.lower().replace("’", "'").replace("n't", " not")):
        if word not in _IDLE:
            yield word if word in _NEGATIONS or len(word) < 4 else word.removesuffix("s")
