"""Parse annotation text into labelled segments: ``["label"] text ["end-section"]``.

The annotator is a language model, so the text is imperfect. In the paper's 120 annotations 170 sections hold
another tag (unclosed or nested), 750 labels are numbered (``["5. backtracking"]``) and 440 invented, some are
misspelt, 13 annotations stand in code fences, two have numbers for labels (``[5]``) and two are refusals.
Three rules say what to make of that.
"""

from __future__ import annotations

import bisect
import difflib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from mixprec.traces.store import BEHAVIOURS, UNSCORED

Rule = Literal["released", "paper", "aligned"]
#: ``released``: the regular expression of the authors' code. ``paper``: the same without unclosed and nested
#: segments, as the paper says. ``aligned`` (ours): tags read one by one, labels normalised.
RULES: tuple[Rule, ...] = get_args(Rule)

#: Label in the annotation syntax -> behaviour.
LABELS = {behaviour.replace("_", "-"): behaviour for behaviour in (*UNSCORED, *BEHAVIOURS)}
#: The annotators' own numbering of the labels, seen in ``["5. backtracking"]`` and alone in ``[5]``.
_NUMBERED = (
    "initializing",
    "deduction",
    "adding_knowledge",
    "example_testing",
    "uncertainty_estimation",
    "backtracking",
)

_QUOTE = "[\"'“”‘’]"
#: Any quoted tag, with the slips that occur: ``{"end-section"]``, ``['end-section"]``, ``[“deduction”]``.
_TAG = re.compile(rf"[\[{{]\s*{_QUOTE}([^\[\]\n\"“”]{{1,60}}){_QUOTE}\s*\]")
#: Where an annotation has no named label at all, the labels' numbers stand for them.
_NUMBER_TAG = re.compile(rf"{_TAG.pattern}|\[([0-5])\]")
_STRICT_TAG = re.compile(r'\["[^"\]\n]+"\]')
_SECTION = re.compile(rf'\["({"|".join(LABELS)})"\](.*?)\["end-section"\]', re.DOTALL)
_CLOSES = '["end-section"]'
_FENCE = re.compile(r"^```\w*[ \t]*$", re.MULTILINE)
_NUMBERING = re.compile(r"^\d+[.):]?\s*")
_END = "end-section"
#: Similarity (difflib's ratio) from which an unknown label counts as a misspelling of a known one.
_NEAR = 0.8


class Segment(NamedTuple):
    """A stretch of annotated text. ``position`` is where its text begins in the annotation."""

    behaviour: str
    text: str
    position: int


class Parsed(NamedTuple):
    """The segments in the annotation's order, and how many were passed over, by reason."""

    segments: list[Segment]
    skipped: Counter[str]


def parse(annotated: str, rule: Rule) -> Parsed:
    """Read the segments of an annotation.

    Reasons for passing something over: ``nested`` (paper: the text holds another tag), ``empty`` (no text),
    ``unknown_label`` (an invented or, but with ``aligned``, a numbered label), ``unclosed`` (no end-section, where
    ``aligned`` needs none), and with ``aligned`` ``outside`` (text that no label opens).
    """
    if rule == "aligned":
        return _parse_tags(annotated)
    # Behind the last end of a section none closes: to look for it from each label on would take quadratic time.
    closed = annotated.rfind(_CLOSES) + len(_CLOSES) if _CLOSES in annotated else 0
    matches = list(_SECTION.finditer(annotated, 0, closed))
    segments = [_segment(LABELS[match[1]], match[2], match.start(2)) for match in matches]
    skipped = _unread_tags(annotated, matches)
    kept = []
    for segment in segments:
        if not segment.text:
            skipped["empty"] += 1
        elif rule == "paper" and _STRICT_TAG.search(segment.text):
            skipped["nested"] += 1
        else:
            kept.append(segment)
    return Parsed(kept, skipped)


def _unread_tags(annotated: str, sections: Sequence[re.Match[str]]) -> Counter[str]:
    """Tags that open no section and lie in none, so that what they label is lost."""
    starts, ends = [section.start() for section in sections], [0, *(section.end() for section in sections)]
    return Counter(
        "unclosed" if label in LABELS else "unknown_label"
        for label, start, _ in _tags(annotated)
        if label != _END and start >= ends[bisect.bisect_right(starts, start)]
    )


def _segment(behaviour: str, text: str, position: int) -> Segment:
    return Segment(behaviour, text.strip(), position + len(text) - len(text.lstrip()))


class Section(NamedTuple):
    """Annotated text between two tags, stripped; ``label`` as it was written, None where none was open.

    ``nested``: its label stands inside of another section.
    """

    label: str | None
    text: str
    position: int
    nested: bool = False


def read_sections(annotated: str) -> list[Section]:
    """Read tag by tag: a label opens a section, the next tag of any kind closes it; text outside of sections too.

    Sections without text have it empty; of text outside, only what there is.
    """
    # Blanks of the same length, so that positions in the annotation stay.
    text = _FENCE.sub(lambda match: " " * len(match[0]), annotated)
    sections: list[Section] = []
    label: str | None = None
    nested, begin = False, 0
    for found, start, end in [*_tags(text), (_END, len(text), len(text))]:
        inside = _segment("", text[begin:start], begin)
        if inside.text or label is not None:
            sections.append(Section(label, inside.text, inside.position, nested))
        nested = label is not None and found != _END
        label, begin = (None if found == _END else found), end
    return sections


def _parse_tags(annotated: str) -> Parsed:
    segments: list[Segment] = []
    skipped: Counter[str] = Counter()
    for section in read_sections(annotated):
        if section.label is None:
            skipped["outside"] += 1
        elif not section.text:
            skipped["empty"] += 1
        elif behaviour := normalise_label(section.label):
            segments.append(Segment(behaviour, section.text, section.position))
        else:
            skipped["unknown_label"] += 1
    return Parsed(segments, +skipped)


def _tags(text: str) -> list[tuple[str, int, int]]:
    """Every tag's label (or end-section) with its place."""
    tags = [(_tidy(match[1]), match.start(), match.end()) for match in _TAG.finditer(text)]
    if all(label == _END for label, _, _ in tags):
        tags = [(_tidy(match[1] or match[2]), match.start(), match.end()) for match in _NUMBER_TAG.finditer(text)]
    return tags


def _tidy(label: str) -> str:
    return re.sub(r"[\s_]+", "-", label.strip().lower())


def normalise_label(label: str) -> str | None:
    """The behaviour that a label means, or None for an invented one.

    Case, numbering (``5. backtracking``, or the number alone), underscores and spaces for hyphens, plurals
    and misspellings (``exampe-testing``) are seen through.
    """
    tidy = _tidy(label)
    if tidy.isdecimal() and len(tidy) < 5 and int(tidy) < len(_NUMBERED):
        return _NUMBERED[int(tidy)]
    near = difflib.get_close_matches(_NUMBERING.sub("", tidy).strip("-"), LABELS, n=1, cutoff=_NEAR)
    return LABELS[near[0]] if near else None
