"""Train a sentence classifier: on what ships with mixprec, and on annotated traces that a user brings.

What a field of rare and frequent labels is unsure of, it calls by the frequent one. So that it finds the rare ones,
every label's score gets an offset, chosen on a part of the text that it didn't see (``train``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from mixprec.traces import procedural, store, thinking
from mixprec.traces.learned import crf, passages
from mixprec.traces.learned.classifier import LABELS, Classifier
from mixprec.traces.learned.features import BIAS, Features
from mixprec.traces.learned.passages import Sequence
from mixprec.traces.sentences import split
from mixprec.traces.spans import AnnotatedTrace, char_spans
from mixprec.traces.store import BEHAVIOURS

#: How many procedural traces, their seed, and how much one counts against a passage written by hand.
TRACES, SEED, PROCEDURAL_WEIGHT = 330, 0, 0.1
#: A feature counts from so many sentences on.
LEAST = 2
PENALTY = 1.0
#: Every so manieth of the sequences that count in full is held out while the offsets are chosen, in so many rounds.
HELD_OUT, ROUNDS = 5, 12
#: How much is to be found of a scored behaviour for each character that has it. A recall of 0.6 at a precision of 0.5,
#: which is aimed at, is 1.2 characters: rather too much than too little.
GENEROUS = 1.2


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
    """A classifier of labelled sequences with their weights; deterministic.

    A first one learns from all but a fifth of the sequences that count in full, and on that fifth the offsets are
    chosen with which it finds ``GENEROUS`` times as many characters of every scored behaviour as have it. The second
    one learns from all and has these offsets.
    """
    every = [(each, weight) for each, weight in sequences if each.sentences]
    seen, unseen = parted(every)
    whole = fitted(every, penalty)
    return shifted(whole, offsets(fitted(seen, penalty), unseen)) if unseen else whole


def parted(sequences: list[tuple[Sequence, float]]) -> tuple[list[tuple[Sequence, float]], list[Sequence]]:
    """What is learned from while the offsets are chosen, and what they are chosen on."""
    full = [at for at, (_, weight) in enumerate(sequences) if weight == 1.0]
    held = set(full[HELD_OUT - 1 :: HELD_OUT])
    return [each for at, each in enumerate(sequences) if at not in held], [sequences[at][0] for at in sorted(held)]


def offsets(classifier: Classifier, sequences: Iterable[Sequence]) -> np.ndarray:
    """What is to be added to every label's score, (labels,), for so many characters to get it as are wanted."""
    given = list(sequences)
    lengths = np.array([len(sentence.text) for each in given for sentence in each.sentences], dtype=float)
    labels = np.array([LABELS.index(behaviour) for each in given for behaviour in each.behaviours])
    wanted = np.asarray(np.bincount(labels, lengths, len(LABELS)), dtype=np.float64)
    scored, total = len(BEHAVIOURS), wanted.sum()
    wanted[:scored] *= GENEROUS
    wanted[scored:] *= max(total - wanted[:scored].sum(), 0) / max(wanted[scored:].sum(), 1)
    found = np.zeros(len(LABELS))
    for _ in range(ROUNDS):
        moved = shifted(classifier, found)
        guessed = np.concatenate([moved.probabilities(each.prompt, each.sentences).argmax(1) for each in given])
        # Half of what the counts say: labels that lie close together would change places for ever.
        found = found + np.log((wanted + 100) / (np.bincount(guessed, lengths, len(LABELS)) + 100)) / 2
    return found


def shifted(classifier: Classifier, by: np.ndarray) -> Classifier:
    """The classifier with something added to every label's score, (labels,)."""
    emission = classifier.weights.emission.copy()
    emission[list(classifier.names).index(BIAS)] += by
    return Classifier(classifier.names, classifier.weights._replace(emission=emission))


def fitted(kept: list[tuple[Sequence, float]], penalty: float = PENALTY) -> Classifier:
    """The random field alone, without offsets."""
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
