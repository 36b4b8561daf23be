"""Train a sentence classifier: on what ships with mixprec, and on annotated traces that a user brings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from mixprec.traces import procedural, store, thinking
from mixprec.traces.learned import crf, passages
from mixprec.traces.learned.classifier import LABELS, Classifier
from mixprec.traces.learned.features import Features
from mixprec.traces.learned.passages import Sequence
from mixprec.traces.sentences import split
from mixprec.traces.spans import AnnotatedTrace, char_spans

#: How many procedural traces, their seed, and how much one counts against a passage written by hand.
TRACES, SEED, PROCEDURAL_WEIGHT = 330, 0, 0.1
#: A feature counts from so many sentences on.
LEAST = 2
PENALTY = 1.0


def shipped() -> list[tuple[Sequence, float]]:
    """What the default is trained on, with weights: passages, bundled:attribution, procedural traces."""
    written = [(each, 1.0) for found in passages.load().values() for each in found]
    bundled = (char_spans(trace, "aligned") for trace in store.load("bundled:attribution"))
    return written + given(bundled) + made(TRACES, SEED)


def made(count: int, seed: int, kinds: Iterable[str] = tuple(procedural.KINDS)) -> list[tuple[Sequence, float]]:
    """Procedural traces."""
    return [
        (
            passages.of_sections(trace.prompt, ((each.behaviour, each.text, each.opens) for each in sections)),
            PROCEDURAL_WEIGHT,
        )
        for trace, sections, _ in procedural.traces(count, seed, tuple(kinds))
    ]


def given(traces: Iterable[AnnotatedTrace]) -> list[tuple[Sequence, float]]:
    """A user's annotated traces; each counts as much as a passage."""
    return [(of_trace(each), 1.0) for each in traces]


def of_trace(annotated: AnnotatedTrace) -> Sequence:
    """The labelled sentences of an annotated trace's reasoning; a sentence has the behaviour that most of it shows.

    Sentences that no span touches are left out.
    """
    trace = annotated.trace
    shift = len(trace.prompt)
    shown = [""] * len(trace.output)
    for span in annotated.spans:
        start, end = max(0, span.start - shift), max(0, span.end - shift)
        shown[start:end] = [span.behaviour] * (end - start)
    sentences, behaviours = [], []
    for sentence in split(trace.output, *thinking.reasoning(trace.output)):
        counts = Counter(shown[sentence.start : sentence.end])
        counts.pop("", None)
        if counts:
            sentences.append(sentence)
            behaviours.append(max(counts, key=lambda name: (counts[name], name)))
    return Sequence(trace.prompt, sentences, behaviours)


def train(sequences: Iterable[tuple[Sequence, float]], penalty: float = PENALTY) -> Classifier:
    """A classifier of labelled sequences with their weights; deterministic."""
    kept = [(each, weight) for each, weight in sequences if each.sentences]
    seen = Features()
    found = [list(dict.fromkeys(row)) for each, _ in kept for row in seen.rows(each.prompt, each.sentences)]
    counts = np.bincount(np.concatenate([np.asarray(row, dtype=np.int64) for row in found]), minlength=len(seen.names))
    place = np.where(counts >= LEAST, np.cumsum(counts >= LEAST) - 1, -1)
    names = [name for name, count in zip(seen.names, counts, strict=True) if count >= LEAST]
    chains = crf.Chains(
        rows=[[int(place[number]) for number in row if place[number] >= 0] for row in found],
        labels=np.array([LABELS.index(label) for each, _ in kept for label in each.behaviours]),
        opens=np.array([sentence.opens for each, _ in kept for sentence in each.sentences]),
        lengths=np.array([len(each.sentences) for each, _ in kept]),
        weight=np.array([weight for _, weight in kept]),
    )
    return Classifier(names, crf.train(chains, len(names), len(LABELS), penalty))
