"""Cells: sets of modules in one candidate, measured one after the other, each a line on disk as it is done.

A killed run continues with the next cell; several processes share the cells, each with a file of its own until all are
done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixprec.compress.candidatefiles import Candidates
from mixprec.core import artifacts, processes, publish
from mixprec.numerics.divergence import TokenFidelity
from mixprec.sensitivity import RULES
from mixprec.sensitivity.passages import Scored
from mixprec.sensitivity.sets import CONTROL, Cell
from mixprec.walk.restarts import Restarts

#: What is measured, summed over the tokens of a target: KL in nats, how often the most likely token is another one, by
#: how many nats the text's own tokens became less likely (its sum; negative where they became likelier).
METRICS = ("kl", "disagreement", "nll_increase")


class Result(NamedTuple):
    """``sums``: metric -> target -> the sum over each passage's tokens (P,). ``counts``: target -> tokens (P,)."""

    sums: dict[str, dict[str, list[float]]]
    counts: dict[str, list[float]]

    def mean(self, metric: str, target: str, passages: Tensor | None = None) -> float:
        """Per token; ``passages`` (P,): how often each counts. 0 where no token counts."""
        sums, counts = (
            torch.tensor(values, dtype=torch.float64) for values in (self.sums[metric][target], self.counts[target])
        )
        weights = torch.ones_like(sums) if passages is None else passages.to(sums)
        total = float((counts * weights).sum())
        return float((sums * weights).sum()) / total if total else 0.0


def measure(
    cells: Sequence[Cell],
    candidates: Candidates,
    restarts: Restarts,
    scored: Sequence[Scored],
    folder: Path,
    advance: Callable[[int], None] = lambda _: None,
    part: tuple[int, int] | None = None,
) -> dict[Cell, Result]:
    """Measure all ``cells`` and the control; under a launcher this process's share of them, then all are read.

    ``restarts`` are on the passages ``scored``. Finished cells in ``folder`` with the same inputs are not done again.
    ``part``: measure only this part, from 0, of so many, while other processes that know nothing of this one measure
    theirs; what is there then comes back.
    """
    stamp = artifacts.fingerprint(
        RULES,
        candidates.digest,
        [[each.tokens.tolist(), {name: w.tolist() for name, w in each.weights.items()}] for each in scored],
        [where.tolist() for where in restarts.positions],
    )
    found = _read(folder, stamp)
    processes.wait()  # before any of them writes: all see the same cells as done
    costs = [restarts.cost(cell.addresses) for cell in cells]
    if part is None:
        left = [number for number, cell in enumerate(cells) if cell not in found]
        shared = processes.share([costs[number] for number in left], processes.rank(), processes.count())
        mine, file = [left[number] for number in shared], processes.rank()
    else:  # of all cells: what is done changes while others are at work
        mine, file = [number for number in processes.share(costs, *part) if cells[number] not in found], part[0]
    advance(sum(cell in found for cell in cells))
    if mine or CONTROL not in found:
        control = restarts.measure({})
        if CONTROL not in found and file == 0:
            _write(folder / f"{file}.jsonl", stamp, CONTROL, _sums(control, control, restarts, scored))
        for number in mine:
            cell = cells[number]
            weights = {address: candidates.weight(address, cell.candidate) for address in cell.addresses}
            sums = _sums(restarts.measure(weights), control, restarts, scored)
            _write(folder / f"{file}.jsonl", stamp, cell, sums)
            advance(1)
    processes.wait()
    found = _read(folder, stamp)
    processes.wait()
    if part is None and processes.is_main():
        _join(folder, stamp, [CONTROL, *cells], found)
    return found


def _join(folder: Path, stamp: str, cells: Sequence[Cell], found: dict[Cell, Result]) -> None:
    """One file of all cells, in their order, as one process that measures all of them leaves it."""
    files = sorted(folder.glob("*.jsonl"))
    if [path.name for path in files] == ["0.jsonl"]:
        return
    others = [cell for cell in found if cell not in cells]
    artifacts.write_rows(folder / "0.jsonl", [_row(stamp, cell, found[cell]) for cell in (*cells, *others)])
    for path in files:
        if path.name != "0.jsonl":
            publish.remove(path)


def _sums(
    measured: Sequence[TokenFidelity], control: Sequence[TokenFidelity], restarts: Restarts, scored: Sequence[Scored]
) -> Result:
    targets = list(scored[0].weights)
    sums: dict[str, dict[str, list[float]]] = {metric: {target: [] for target in targets} for metric in METRICS}
    counts: dict[str, list[float]] = {target: [] for target in targets}
    for own, other, where, passage in zip(measured, control, restarts.positions, scored, strict=True):
        per_token = {"kl": own.kl, "disagreement": 1 - own.agree.double(), "nll_increase": own.nll - other.nll}
        for target in targets:
            weights = passage.weights[target][where].double()
            counts[target].append(float(weights.sum()))
            for metric, values in per_token.items():
                sums[metric][target].append(float((values * weights).sum()))
    return Result(sums, counts)


def _write(path: Path, stamp: str, cell: Cell, result: Result) -> None:
    artifacts.append_row(path, _row(stamp, cell, result))


def _row(stamp: str, cell: Cell, result: Result) -> dict[str, Any]:
    return {"stamp": stamp, "cell": cell._asdict(), **result._asdict()}


def _read(folder: Path, stamp: str) -> dict[Cell, Result]:
    """Finished cells."""
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        for row in artifacts.rows_left(path, stamp):
            with suppress(KeyError, TypeError):  # none of ours
                cell = Cell(row["cell"]["name"], row["cell"]["candidate"], tuple(row["cell"]["addresses"]))
                found[cell] = Result(row["sums"], row["counts"])
    return found
