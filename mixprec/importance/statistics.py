"""What one pass over a trace leaves on disk, so that everything after it needs no model: one file per trace."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mixprec import artifacts
from mixprec.importance.engine import TraceResult
from mixprec.importance.options import AttributionOptions
from mixprec.importance.windows import Work


class PresetStatistics(NamedTuple):
    """One trace under one set of options; C behaviours, D = sum of all modules' output sizes.

    row_sums (C, D): activations summed over each behaviour's positions; row_counts (C,): how many these are.
    spans (C,): number of windows of each behaviour. gradients (G, D) with owners (G,): the behaviour of each row.
    With the absolute value outside one row per behaviour (summed over its windows), inside one per window.
    """

    row_sums: Tensor
    row_counts: Tensor
    spans: Tensor
    gradients: Tensor
    owners: Tensor


class TraceStatistics(NamedTuple):
    """One trace: number of tokens, activations summed over all of them (D,), and what each preset needs."""

    tokens: int
    activations: Tensor
    presets: dict[str, PresetStatistics]


def collect(
    works: Mapping[str, Work], options: Mapping[str, AttributionOptions], result: TraceResult, tokens: int
) -> TraceStatistics:
    """Split one pass (first row: all tokens; then each preset's behaviours and windows, in order) by preset."""
    presets = {}
    row, window = 1, 0
    for name, work in works.items():
        behaviours = len(work.rows)
        windows = slice(window, window + len(work.windows))
        presets[name] = _preset_statistics(
            work, options[name], result.row_sums[row : row + behaviours], result.gradients[windows]
        )
        row, window = row + behaviours, windows.stop
    return TraceStatistics(tokens, result.row_sums[0], presets)


def _preset_statistics(
    work: Work, options: AttributionOptions, row_sums: Tensor, gradients: Tensor
) -> PresetStatistics:
    owners = torch.tensor([window.behaviour for window in work.windows], dtype=torch.long)
    behaviours = len(work.rows)
    if options.tokens == "sum":
        gradients = gradients * torch.tensor([w.end - w.start for w in work.windows], dtype=gradients.dtype)[:, None]
    if options.absolute == "outside":
        present = owners.unique()
        sums = gradients.new_zeros(behaviours, gradients.shape[1]).index_add_(0, owners, gradients)
        gradients, kept = sums[present], present
    else:
        kept = owners
    return PresetStatistics(
        row_sums=row_sums,
        row_counts=work.rows.sum(1),
        spans=torch.bincount(owners, minlength=behaviours),
        gradients=gradients,
        owners=kept,
    )


def save(path: Path, statistics: TraceStatistics, stamp: str) -> None:
    """Write one trace's statistics; ``stamp`` is the fingerprint of everything they depend on."""
    tensors = {"activations": statistics.activations}
    for name, preset in statistics.presets.items():
        tensors |= {f"{name}/{field}": tensor for field, tensor in preset._asdict().items()}
    artifacts.save_tensors(path, tensors, {"tokens": statistics.tokens, "stamp": stamp})


def load(path: Path, preset: str, columns: slice = slice(None)) -> TraceStatistics:
    """Read one trace's statistics, of one preset; of what is D wide the given columns only."""
    with artifacts.open_tensors(path) as file:
        tokens = json.loads(file.metadata()["tokens"])
        activations = file.get_slice("activations")[columns]
        fields = {
            field: file.get_slice(f"{preset}/{field}")[:, columns]
            if field in ("row_sums", "gradients")
            else file.get_tensor(f"{preset}/{field}")
            for field in PresetStatistics._fields
        }
    return TraceStatistics(tokens, activations, {preset: PresetStatistics(**fields)})


def is_done(path: Path, stamp: str) -> bool:
    """Whether a finished file with this stamp is there."""
    if not path.is_file():
        return False
    with artifacts.open_tensors(path) as file:
        return (file.metadata() or {}).get("stamp") == f'"{stamp}"'


def paths(folder: Path, count: int) -> Sequence[Path]:
    """Where the statistics of trace 0 … count - 1 lie."""
    return [folder / f"{index:05d}.safetensors" for index in range(count)]
