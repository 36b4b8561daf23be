"""A model compared with its original, or with the original's predictions in a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixprec.evaluate import fidelity, metrics, reference
from mixprec.evaluate.passages import Material, Passage
from mixprec.models.head import Head
from mixprec.models.model import Model
from mixprec.numerics.divergence import TokenFidelity


def evaluate(model: Model, original: Model, material: Material) -> dict[str, Any]:
    """result.json of ``model``; one of both is in memory at a time, the original first.

    Raises UserError as ``fidelity`` does.
    """
    found, notes = per_token(model, original, material.all)
    return metrics.evaluate_all(material, found, notes)


def per_token(
    model: Model, original: Model, passages: Sequence[Passage]
) -> tuple[list[TokenFidelity], tuple[str, ...]]:
    """What ``model`` does at every token of the passages, and what was noted when it was loaded."""
    loaded = original.load()
    hidden = list(fidelity.hidden_states(loaded, passages, "original"))
    head = Head.of(loaded.model).apart()
    del loaded
    original.release()
    compressed = model.load()
    own = fidelity.hidden_states(compressed, passages, "evaluate")
    return fidelity.compare(passages, own, Head.of(compressed.model), hidden, head), compressed.notes


def evaluate_by_predictions(model: Model, predictions: Path, material: Material) -> dict[str, Any]:
    """result.json of ``model`` against the original's predictions, from ``save_predictions``.

    Raises UserError as ``reference.load`` does.
    """
    known, loaded = reference.load(predictions, material.all), model.load()
    hidden = fidelity.hidden_states(loaded, material.all, "evaluate")
    found = reference.compare(material.all, hidden, Head.of(loaded.model), known)
    return metrics.evaluate_all(material, found, loaded.notes)


def save_predictions(model: Model, path: Path, material: Material, kept: int = reference.KEPT) -> None:
    """Write the predictions of ``model``, to compare others with; ``kept`` tokens at each position.

    Raises UserError as ``reference.save`` does.
    """
    loaded = model.load()
    states = fidelity.hidden_states(loaded, material.all, "predictions")
    reference.save(path, material.all, states, Head.of(loaded.model), model.identity, kept)
