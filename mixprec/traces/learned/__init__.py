"""Annotate a trace by a sentence classifier: no annotator model and no network.

A linear-chain conditional random field over the sentences of a reasoning (``crf``), on words, shapes, places and what
is new in a sentence (``features``). It is trained on reasoning written by hand for it (``data/passages``), on
``bundled:attribution`` and on procedural traces (``traces.procedural``); a user's annotated traces may join
(``training``). What it recalls of GPT-4o's labels is in docs/spans.md.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mixprec.traces import sentences, thinking
from mixprec.traces.spans import AnnotatedTrace, CharSpan
from mixprec.traces.store import Trace

if TYPE_CHECKING:
    from mixprec.traces.learned.classifier import Classifier

#: Raised when the same trace gets other spans: those are made again then.
RULES = 2


def annotate(trace: Trace, classifier: Classifier) -> AnnotatedTrace:
    """The trace with one span for every sentence of its reasoning (``thinking.reasoning``).

    Skipped: ``other_script`` (a sentence most of whose letters aren't Latin), ``no_reasoning`` (nothing to annotate).
    """
    skipped: Counter[str] = Counter()
    found = sentences.split(trace.output, *thinking.reasoning(trace.output))
    readable = [sentence for sentence in found if sentences.is_latin(sentence.text)]
    skipped["other_script"] = len(found) - len(readable)
    skipped["no_reasoning"] = not found
    shift = len(trace.prompt)
    spans = [
        CharSpan(behaviour, shift + sentence.start, shift + sentence.end)
        for sentence, behaviour in zip(readable, classifier.behaviours(trace.prompt, readable), strict=True)
    ]
    return AnnotatedTrace(trace, spans, dict(sorted((+skipped).items())))
