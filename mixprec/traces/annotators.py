"""What finds spans in a trace: the annotation that it comes with, cue phrases, or a sentence classifier."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.traces import cues, learned, spans, store
from mixprec.traces.annotate import Rule
from mixprec.traces.spans import AnnotatedTrace

#: ``given``: the file's annotations; ``cues``: cue phrases (``traces.cues``); ``classifier``: ``traces.learned``.
Annotator = Literal["given", "cues", "classifier"]
#: How options and keys of recipes describe it.
DESCRIPTION = "the file's annotations, cue phrases, or a sentence classifier"


def make(annotator: Annotator, rule: Rule, train: Sequence[str] = ()) -> Callable[[store.Trace], AnnotatedTrace]:
    """What annotates a trace. ``train``: files of annotated traces that the classifier learns from besides its own.

    Raises UserError for files without annotations.
    """
    if annotator == "given":
        return lambda trace: spans.char_spans(trace, rule)
    if annotator == "cues":
        return cues.cue_spans
    # numpy, which nothing else that annotates needs.
    from mixprec.traces.learned import modelfile, training

    own = [each for path in train for each in _learnable(path)]
    found = training.train([*training.shipped(), *training.given(own)]) if own else modelfile.shipped()
    return functools.partial(learned.annotate, classifier=found)


def decided_by(annotator: Annotator, train: Sequence[str] = ()) -> list[Any]:
    """What spans depend on besides the traces and the names of annotator and rule."""
    if annotator != "classifier":
        return []
    return [learned.RULES, *(artifacts.sha256_file(store.locate(path)) for path in train)]


def annotated(source: str, rule: Rule) -> list[AnnotatedTrace]:
    """Traces with the spans that their file has, or else those of its annotations. Raises UserError as has_spans."""
    path = store.locate(source)
    if has_spans(path):
        return spans.load_spans(path)
    return [spans.char_spans(trace, rule) for trace in store.load(source)]


def has_spans(path: Path) -> bool:
    """Whether a file of traces has spans of its own. Raises UserError where only some of its rows have."""
    rows = ["spans" in row for row in artifacts.read_jsonl(path)]
    if any(rows) and not all(rows):
        raise UserError(
            f"{path}:{rows.index(False) + 1}: key 'spans' is missing, other rows have it; annotate all traces of a "
            "file alike"
        )
    return any(rows)


def _learnable(source: str) -> list[AnnotatedTrace]:
    found = annotated(source, "aligned")
    if not any(each.spans for each in found):
        raise UserError(f"train: {source}: no trace has a span to learn from; are the annotations of these traces?")
    return found
