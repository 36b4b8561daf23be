"""What one pass over a trace leaves on disk, so that everything after it needs no model: one file per trace.

The spans' gradients are written while the pass continues, so none of them waits in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mixprec.core import artifacts
from mixprec.importance.options import AttributionOptions
from mixprec.importance.tensorfile import Shape, TensorFile, create
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


class _Target(NamedTuple):
    """The row that a window's gradient is added to, times ``factor``."""

    tensor: str
    row: int
    factor: float


class TraceFile:
    """Statistics of one trace on their way to disk; made by ``writing``."""

    def __init__(
        self, file: TensorFile, columns: Mapping[str, slice], works: Mapping[str, Work], targets: Sequence[_Target]
    ) -> None:
        self._file = file
        self._columns = columns
        self._works = works
        self._targets = targets

    def add(self, windows: Tensor, found: Mapping[str, Tensor]) -> None:
        """outputs.Gradients.add; windows count through all presets, and modules outside these columns are left out."""
        for start, values in self._runs(found):
            sums: dict[tuple[str, int], Tensor] = {}
            for number, gradient in zip(windows.tolist(), values, strict=True):
                tensor, row, factor = self._targets[number]
                sums[tensor, row] = sums.get((tensor, row), 0) + factor * gradient
            for (tensor, row), total in sums.items():
                self._file.add(tensor, row, start, total)

    def _runs(self, found: Mapping[str, Tensor]) -> Iterator[tuple[int, Tensor]]:
        """First column and values (W, n) of modules that lie side by side."""
        run: list[str] = []
        for name in [name for name in self._columns if name in found] + [""]:
            if run and (not name or self._columns[run[-1]].stop != self._columns[name].start):
                yield self._columns[run[0]].start, torch.cat([found[each].cpu() for each in run], dim=1)
                run = []
            run.append(name)

    def finish(self, row_sums: Tensor) -> None:
        """Write the activation sums (1 + presets * C, D): of all tokens, then of each preset's behaviours."""
        self._file.write("activations", row_sums[0])
        behaviours = row_sums[1:].split([len(work.rows) for work in self._works.values()])
        for name, rows in zip(self._works, behaviours, strict=True):
            self._file.write(f"{name}/row_sums", rows)


@contextmanager
def writing(
    path: Path,
    columns: Mapping[str, slice],
    works: Mapping[str, Work],
    options: Mapping[str, AttributionOptions],
    dtype: torch.dtype,
    stamp: str,
) -> Iterator[TraceFile]:
    """Write one trace's statistics, accumulated in ``dtype``; D columns, in order of the modules.

    ``stamp`` is the fingerprint of everything they depend on. The file appears when the block is left.
    """
    width = max((where.stop for where in columns.values()), default=0)
    tokens = next(iter(works.values())).rows.shape[1]
    shapes, known, owners = {"activations": Shape(dtype, (width,))}, {}, {}
    for name, work in works.items():
        behaviours = torch.tensor([window.behaviour for window in work.windows], dtype=torch.long)
        owners[name] = behaviours.unique() if options[name].absolute == "outside" else behaviours
        shapes[f"{name}/row_sums"] = Shape(dtype, (len(work.rows), width))
        shapes[f"{name}/gradients"] = Shape(dtype, (len(owners[name]), width))
        known[f"{name}/owners"] = owners[name]
        known[f"{name}/spans"] = torch.bincount(behaviours, minlength=len(work.rows))
        known[f"{name}/row_counts"] = work.rows.sum(1)
    shapes |= {name: Shape(tensor.dtype, tuple(tensor.shape)) for name, tensor in known.items()}
    with create(path, shapes, {"stamp": stamp, "tokens": tokens}) as file:
        for name, tensor in known.items():
            file.write(name, tensor)
        targets = [t for name, work in works.items() for t in _targets(name, work, owners[name], options[name])]
        yield TraceFile(file, columns, works, targets)


def _targets(preset: str, work: Work, owners: Tensor, options: AttributionOptions) -> Iterator[_Target]:
    """Where the gradient of each of a preset's windows goes; ``owners``: the behaviours of the rows."""
    rows = {behaviour: row for row, behaviour in enumerate(owners.tolist())}
    for number, window in enumerate(work.windows):
        row = rows[window.behaviour] if options.absolute == "outside" else number
        factor = window.end - window.start if options.tokens == "sum" else 1
        yield _Target(f"{preset}/gradients", row, factor)


def load(path: Path, preset: str, columns: slice = slice(None), rows: slice = slice(None)) -> TraceStatistics:
    """Read one trace's statistics, of one preset; of what is D wide the given columns, of gradients the given rows."""
    with artifacts.open_tensors(path) as file:
        tokens = json.loads(file.metadata()["tokens"])
        activations = file.get_slice("activations")[columns]
        data = PresetStatistics(
            row_sums=file.get_slice(f"{preset}/row_sums")[:, columns],
            row_counts=file.get_tensor(f"{preset}/row_counts"),
            spans=file.get_tensor(f"{preset}/spans"),
            gradients=file.get_slice(f"{preset}/gradients")[rows, columns],
            owners=file.get_tensor(f"{preset}/owners")[rows],
        )
    return TraceStatistics(tokens, activations, {preset: data})


def paths(folder: Path, count: int) -> Sequence[Path]:
    """Where the statistics of trace 0 … count - 1 lie."""
    return [folder / f"{index:05d}.safetensors" for index in range(count)]
