"""A classifier as a file: safetensors, weights in 16 bits, the features' names in its header."""

from __future__ import annotations

import functools
import json
from importlib import resources
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from mixprec.core.errors import UserError
from mixprec.traces.learned.classifier import LABELS, Classifier
from mixprec.traces.learned.crf import Weights

#: Raised when the same text has other features: files made before are refused then.
VERSION = 2


def shipped_path() -> Path:
    """The classifier that ships with mixprec (``scripts/update_annotator.py`` makes it)."""
    return Path(str(resources.files("mixprec.traces").joinpath("data", "annotator.safetensors")))


@functools.lru_cache(maxsize=1)
def shipped() -> Classifier:
    """The classifier that ships, read once."""
    return read(shipped_path())


def rounded(classifier: Classifier, least: float = 0.01) -> Classifier:
    """What a file holds: weights in 16 bits, without features whose every weight is below ``least``."""
    kept = np.abs(classifier.weights.emission).max(1) >= least
    weights = Weights(*(part.astype(np.float16) for part in classifier.weights))
    names = [name for name, keep in zip(classifier.names, kept, strict=True) if keep]
    return Classifier(names, weights._replace(emission=weights.emission[kept]))


def write(path: Path, classifier: Classifier) -> None:
    """Write what ``rounded`` gives."""
    weights = rounded(classifier)
    about = {"version": VERSION, "labels": LABELS, "features": list(weights.names)}
    # One entry alone: safetensors writes several in any order, and the same classifier gives the same bytes.
    path.write_bytes(save(dict(weights.weights._asdict()), {"classifier": json.dumps(about, ensure_ascii=False)}))


def read(path: Path) -> Classifier:
    """Read a classifier. Raises UserError for one of another version."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    about = json.loads(header["classifier"])
    if about["version"] != VERSION or tuple(about["labels"]) != LABELS:
        raise UserError(f"{path}: version {about['version']} of the classifier, known is {VERSION}; make it again")
    parts = {name: value.astype(np.float32) for name, value in load(data).items()}
    return Classifier(about["features"], Weights(**parts))
