"""From the traces' statistics to steering vectors and importance (arXiv 2504.02010 §2.2; docs/importance.md).

Everything here is sums over traces in float64; no model is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mixprec.importance import statistics
from mixprec.importance.options import AttributionOptions

#: Gradient rows that are in memory at once.
_ROWS = 8


class Means(NamedTuple):
    """Activation means; C behaviours, D = sum of output sizes.

    behaviours (C, D): sum over traces of each trace's mean over the behaviour's positions.
    traces_with (C,): in how many traces it occurs. spans (C,): its windows. positions (C,): tokens in its means.
    per_trace (D,): mean over traces of the trace's mean over all its tokens. overall (D,): mean over all tokens of
    all traces.
    """

    behaviours: Tensor
    traces_with: Tensor
    spans: Tensor
    positions: Tensor
    per_trace: Tensor
    overall: Tensor


class Scores(NamedTuple):
    """steering (C, D): normalised steering vectors ũ. importance (C, M): I for each of M modules, NaN-free.

    A behaviour without spans has zeros.
    """

    steering: Tensor
    importance: Tensor


def means(paths: Sequence[Path], preset: str) -> Means:
    """Activation means over all traces."""
    behaviours = traces_with = spans = positions = per_trace = overall = torch.zeros(())
    tokens = 0
    for path in paths:
        trace = statistics.load(path, preset, rows=slice(0, 0))
        data = trace.presets[preset]
        present = data.row_counts > 0
        rows = data.row_sums.double() / data.row_counts.double().clamp(min=1)[:, None]
        behaviours = behaviours + rows
        traces_with = traces_with + present.long()
        spans = spans + data.spans
        positions = positions + data.row_counts
        per_trace = per_trace + trace.activations.double() / trace.tokens
        overall = overall + trace.activations.double()
        tokens += trace.tokens
    return Means(behaviours, traces_with, spans, positions, per_trace / len(paths), overall / tokens)


def steering_vectors(means: Means, slices: Mapping[str, slice], options: AttributionOptions) -> Tensor:
    """Normalised steering vectors ũ (C, D): difference of means, scaled to the mean activation's norm per module."""
    behaviours = means.behaviours
    if options.alias_means:
        # The released code's `[zeros] * 4` is one tensor four times, so every behaviour holds all four's sum.
        behaviours = behaviours.sum(0, keepdim=True).expand_as(behaviours)
    present = (means.traces_with > 0)[:, None]
    vectors = behaviours / means.traces_with.clamp(min=1)[:, None] - means.per_trace
    vectors = torch.where(present, vectors, torch.zeros_like(vectors))
    for where in slices.values():
        norms = vectors[:, where].norm(dim=1, keepdim=True)
        target = means.overall[where].norm()
        # A vector of length zero has no direction; it stays zero.
        vectors[:, where] *= torch.where(norms > 0, target / norms, torch.zeros_like(norms))
    return vectors


def _gradients(path: Path, preset: str) -> Iterator[statistics.PresetStatistics]:
    """A trace's gradient rows, a few at a time."""
    rows = len(statistics.load(path, preset, columns=slice(0, 0)).presets[preset].owners)
    for start in range(0, rows, _ROWS):
        yield statistics.load(path, preset, rows=slice(start, min(start + _ROWS, rows))).presets[preset]


def score(
    paths: Sequence[Path], preset: str, slices: Mapping[str, slice], options: AttributionOptions
) -> tuple[Scores, Means]:
    """Steering vectors and importance of every module for every behaviour, from the statistics files."""
    averages = means(paths, preset)
    steering = steering_vectors(averages, slices, options)
    total = torch.zeros(len(steering), len(slices), dtype=torch.float64)
    for path in paths:
        for data in _gradients(path, preset):
            # (G, D): every gradient row times its own behaviour's steering vector, then summed module by module.
            products = data.gradients.double() * steering[data.owners]
            per_module = torch.stack([products[:, where].sum(1) for where in slices.values()], dim=1)
            if options.absolute == "inside":
                per_module = per_module.abs()
            total.index_add_(0, data.owners, per_module)
    divisor = averages.traces_with if options.divisor == "traces" else averages.spans
    total /= divisor.clamp(min=1)[:, None]
    return Scores(steering, total.abs()), averages
