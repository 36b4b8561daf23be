"""The classifier as it annotates: names of features, their weights, and a file for both."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mixprec.traces.learned import crf
from mixprec.traces.learned.features import Features
from mixprec.traces.sentences import Sentence
from mixprec.traces.store import BEHAVIOURS, UNSCORED

LABELS = (*BEHAVIOURS, *UNSCORED)


@dataclass(frozen=True)
class Classifier:
    """``names``: those of the features, in the order of the weights."""

    names: Sequence[str]
    weights: crf.Weights

    @functools.cached_property
    def _features(self) -> Features:
        return Features(self.names)

    def probabilities(self, prompt: str, sentences: Sequence[Sentence]) -> crf.Floats:
        """The probability of every label (``LABELS``) of every sentence of a reasoning: (sentences, labels)."""
        rows = self._features.rows(prompt, sentences)
        # Each has one feature at least, the bias, so that no sum is empty.
        starts = np.cumsum([0, *map(len, rows[:-1])])
        chosen = np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int64)
        scores = np.add.reduceat(self.weights.emission[chosen], starts, axis=0)
        return crf.marginals(scores, np.array([sentence.opens for sentence in sentences]), self.weights)

    def behaviours(self, prompt: str, sentences: Sequence[Sentence]) -> list[str]:
        """The likeliest behaviour of every sentence."""
        if not sentences:
            return []
        return [LABELS[at] for at in self.probabilities(prompt, sentences).argmax(1)]
