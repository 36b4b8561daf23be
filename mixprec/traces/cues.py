"""Annotate a trace by cue phrases: a baseline that needs no annotator model and no network.

Each sentence of the reasoning gets the label of the first behaviour one of whose cues it holds, else
``deduction``. That is crude: a language model reads what a sentence does, cues only hear how it speaks. Use
it to try things out, or where no annotator may see the data; for results, annotate with a language model.

Against GPT-4o's annotations of the paper's 120 traces (released rule, in characters that both label):
precision and recall 0.48 and 0.43 for backtracking, 0.31 and 0.36 for uncertainty estimation, 0.34 and 0.11
for example testing, 0.45 and 0.14 for adding knowledge; 0.55 of all characters agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

from mixprec.traces import thinking
from mixprec.traces.spans import AnnotatedTrace, char_spans
from mixprec.traces.store import Trace


class _Sentence(NamedTuple):
    """Characters ``start`` to ``end`` of the output."""

    start: int
    end: int
    label: str


def _any(*phrases: str) -> re.Pattern[str]:
    return re.compile("|".join(rf"(?:{phrase})" for phrase in phrases), re.IGNORECASE)


#: Opens a sentence, whatever little word stands before.
_OPENING = r"^\W*(?:(?:so|but|and|or|ok|okay|oh|hmm|now|then|yes|no)\b\W*)*"

#: In this order: the first label with a cue in a sentence is the sentence's.
_CUES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "backtracking",
        _any(
            _OPENING + r"wait,? (?:no|actually|perhaps|maybe|hold on|another|let)\b",
            _OPENING + r"(?:alternatively|actually|hold on|scratch that|on second thought)\b",
            r"\blet(?:'s| me| us) (?:re-?(?:think|consider|examine|start|check|calculate|compute|do|visit)|"
            r"(?:try|start|check|go) (?:again|over|back)|double[- ]check|try (?:a different|another))",
            r"\b(?:another|a different|a better) (?:approach|way|idea|method)\b",
            r"\bI (?:made|must have made|think I made|might have made|may have made) an? (?:mistake|error)\b",
            r"\b(?:that's|that is|this is|is) (?:not right|wrong|a mistake|incorrect)\b",
            r"\bI (?:messed|mixed|screwed) up\b",
        ),
    ),
    (
        "uncertainty-estimation",
        _any(
            _OPENING + r"(?:wait|maybe|perhaps)\b",
            r"\bhmm\b",
            r"\bnot (?:\w+ ){0,2}(?:sure|certain|confident|obvious)\b",
            r"\b(?:unsure|confused|confusing|stuck|unclear|ambiguous|tricky)\b",
            r"\bseems (?:off|strange|odd|complicated)\b",
            r"\bI (?:wonder|doubt|guess|don't know|can't be sure)\b",
            r"\b(?:maybe|perhaps|might|may) (?:I|not|be wrong|have misunderstood)\b",
            r"\bdoes(?:n't| not) (?:seem|make sense|add up)\b",
            r"\bgetting (?:too )?(?:complicated|messy|stuck)\b",
            r"^\W*but\b.*\?$",
        ),
    ),
    (
        "example-testing",
        _any(
            r"\b(?:for (?:example|instance)|e\.g\.)",
            r"\b(?:let's|let me|let us|we can|I can|I'll) (?:test|try|check|plug|verify|pick|take)\b",
            _OPENING + r"(?:suppose|assume|imagine|say|case|test|try)\b",
            _OPENING + r"(?:for|take|with|starting with)\b[^.,]{0,12}\b\w+ ?= ?-?\d",
            r"\b(?:plug(?:ging)? in|trying|testing)\b",
            r"\blet(?:'s| me| us)? (?:suppose|assume|consider) (?:the case|an example|that)\b",
        ),
    ),
    (
        "adding-knowledge",
        _any(
            r"\bI (?:recall|remember|know|think I (?:recall|remember))\b",
            r"\b(?:recall|remember|note|known|we know|known fact|it's a fact) that\b",
            r"\b(?:is|are) (?:defined as|known as|known for|called|given by|equal to the)\b",
            r"\b(?:by|from|using|according to) (?:the )?(?:definition|formula|law|rule|identity|property)\b",
            r"\b(?:the formula for|theorem|lemma|in general|by definition|means that)\b",
            r"\b(?:premises?|problem|question|statement|timeline) (?:says?|states?|tells?|mentions?)\b",
            r"\b(?:it|which) (?:says|states|mentions)\b",
            r"\b(?:we're|we are|I'm|I am) (?:told|given)\b",
            _OPENING + r"(?:first|second|third|next|also)\b[^?]*\b(?:premise|given|is|are|was|were|saw)\b",
        ),
    ),
)
_INITIALIZING = _any(
    r"\bI (?:need|have|want) to\b",
    r"\bI have (?:this|a) (?:problem|question)\b",
    r"\b(?:let's|let me|let us) (?:see|start|begin|try to|break|figure|parse|understand|think|analy[sz]e)\b",
    r"\b(?:step by step|the problem (?:is|asks)|the question (?:is|asks)|trying to)\b",
)
#: A sentence ends at the end of a line, or at its mark before white space.
_SENTENCE = re.compile(r"\S(?:[^\n]*?[.!?…](?=\s)|[^\n]*)")
#: So many sentences at the beginning can set the task up.
_BEGINNING = 4


def cue_spans(trace: Trace) -> AnnotatedTrace:
    """The trace with the cues' annotation in the place of its own, and the spans of that.

    Cues are written in reading order and verbatim: only the rule made for that loses none.
    """
    return char_spans(replace(trace, annotated=annotate_with_cues(trace)), "aligned")


def annotate_with_cues(trace: Trace) -> str:
    """The trace's reasoning (``thinking.reasoning``) in the annotation syntax; deterministic.

    Neighbouring sentences with the same label share a section. Empty where there is no reasoning.
    """
    sections = _merge(_sentences(trace.output, *thinking.reasoning(trace.output)))
    return "\n\n".join(
        f'["{section.label}"] {trace.output[section.start : section.end]} ["end-section"]' for section in sections
    )


def _sentences(output: str, start: int, end: int) -> Iterator[_Sentence]:
    for number, match in enumerate(_SENTENCE.finditer(output, start, end)):
        text = match[0].rstrip()
        yield _Sentence(match.start(), match.start() + len(text), _label(text, number))


def _label(sentence: str, number: int) -> str:
    """The label of sentence ``number`` (from 0)."""
    plain = sentence.replace("’", "'")
    if number == 0 or (number < _BEGINNING and _INITIALIZING.search(plain)):
        return "initializing"
    return next((label for label, cues in _CUES if cues.search(plain)), "deduction")


def _merge(sentences: Iterable[_Sentence]) -> Iterator[_Sentence]:
    for label, group in groupby(sentences, key=lambda sentence: sentence.label):
        members = list(group)
        yield _Sentence(members[0].start, members[-1].end, label)
