"""The classifier as it annotates: names of features, their weights, and a file for both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixprec.core.errors import UserError
from mixprec.traces.learned import crf
from mixprec.traces.learned.features import VERSION, features
from mixprec.traces.sentences import Sentence
from mixprec.traces.store import BEHAVIOURS, UNSCORED

LABELS = (*BEHAVIOURS, *UNSCORED)


class Classifier(NamedTuple):
    """``names``: those of the features, in the order of the weights."""

    names: Sequence[str]
    weights: crf.Weights

    def index(self) -> dict[str, int]:
        """Name -> its row."""
        return {name: at for at, name in enumerate(self.names)}


def probabilities(
    classifier: Classifier, index: dict[str, int], prompt: str, sentences: Sequence[Sentence]
) -> crf.Floats:
    """The probability of every label of every sentence: (sentences, labels)."""
    rows = [list({index[name] for name in row if name in index}) for row in features(prompt, sentences)]
    lengths = [len(row) for row in rows]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    scores = np.add.reduceat(classifier.weights.emission[np.concatenate(rows).astype(np.int64)], starts, axis=0)
    return crf.marginals(scores, np.array([sentence.opens for sentence in sentences]), classifier.weights)
