"""Train a sentence classifier: on what ships with mixprec, and on annotated traces that a user brings."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

import numpy as np

from mixprec.traces import procedural, store, thinking
from mixprec.traces.learned import crf, passages
from mixprec.traces.learned.classifier import LABELS, Classifier
from mixprec.traces.learned.features import features
from mixprec.traces.learned.passages import Sequence
from mixprec.traces.sentences import split
from mixprec.traces.spans import AnnotatedTrace, char_spans

#: How many procedural traces, their seed, and how much one counts against a passage written by hand.
TRACES, SEED, PROCEDURAL_WEIGHT = 330, 0, 0.15
#: A feature counts from so many sentences on.
LEAST = 2
PENALTY = 0.5


def shipped() -> list[tuple[Sequence, float]]:
    """What the default is trained on, with weights: passages, bundled:attribution, procedural traces."""
    written = [(each, 1.0) for found in passages.load().values() for each in found]
    bundled = [(of_trace(char_spans(trace, "aligned")), 1.0) for trace in store.load("bundled:attribution")]
    return written + bundled + made(TRACES, SEED)


def made(count: int, seed: int, kinds: Iterable[str] = tuple(procedural.KINDS)) -> list[tuple[Sequence, float]]:
    """Procedural traces; half of them without their paragraphs, as models that write in one go."""
    found = []
    for trace, sections in procedural.labelled(count, seed, tuple(kinds)):
        found.append((passages.of_sections(trace.prompt, [tuple(section) for section in sections]), PROCEDURAL_WEIGHT))
    return found


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
    rows = [row for each, _ in kept for row in features(each.prompt, each.sentences)]
    counts = Counter(name for row in rows for name in dict.fromkeys(row))
    names = sorted(name for name, count in counts.items() if count >= LEAST)
    number = {name: at for at, name in enumerate(names)}
    chains = crf.Chains(
        rows=[[number[name] for name in dict.fromkeys(row) if name in number] for row in rows],
        labels=np.array([LABELS.index(label) for each, _ in kept for label in each.behaviours]),
        opens=np.array([sentence.opens for each, _ in kept for sentence in each.sentences]),
        lengths=np.array([len(each.sentences) for each, _ in kept]),
        weight=np.array([weight for _, weight in kept]),
    )
    return Classifier(names, crf.train(chains, len(names), len(LABELS), penalty))
