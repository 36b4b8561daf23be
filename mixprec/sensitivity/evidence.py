"""What the scorers know: sums over each passage on disk, and the errors of all candidates by themselves.

Each passage's sums have a file of their own, with a stamp of all that they depend on: a killed run continues with the
next passage, several processes share them, and intervals come from resampling them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mixprec.compress.candidatefiles import Candidates
from mixprec.compress.options import UpdatesFile
from mixprec.compress.updates import channels
from mixprec.core import artifacts
from mixprec.models.weights import weight_of
from mixprec.sensitivity import RULES
from mixprec.sensitivity.passages import Scored
from mixprec.sensitivity.spec import TOGETHER
from mixprec.sensitivity.sums import ModuleSums
from mixprec.sensitivity.sweep import State, sweep
from mixprec.walk import blocks
from mixprec.walk.losses import Row
from mixprec.walk.walk import walk


class Evidence(NamedTuple):
    """Sums over P passages for M modules, C candidates and the gradients ``rows``; float64.

    slope, square, product (P, M, R, C), trace (P, M, R), output (P, M, C): see sums.ModuleSums.
    """

    rows: Sequence[Row]
    slope: Tensor
    square: Tensor
    trace: Tensor
    product: Tensor
    output: Tensor


class Errors(NamedTuple):
    """Of M modules and C candidates (M, C), float64: what needs no gradient.

    weight: ‖ΔW‖². norm, size (M, 1): ‖W‖², number of weights. awq: Σ_j (E|x_j|)² ‖ΔW_j‖² over columns j.
    imatrix: Σ_j E x_j² ‖ΔW_j‖². updates: Σ_j I_j ‖ΔW_j‖², I_j the channel's importance by fine-tuning updates
    (compress.updates), where that is known.
    """

    weight: Tensor
    norm: Tensor
    size: Tensor
    awq: Tensor
    imatrix: Tensor
    updates: Tensor | None = None


def gather(
    opened: blocks.Blocks,
    candidates: Candidates,
    scored: Sequence[Scored],
    mine: Sequence[int],
    rows: Sequence[Row],
    state: State,
    folder: Path,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Sweep over the passages ``scored`` with the numbers ``mine``, but for those whose files are there."""
    stamps = _stamps(candidates, scored, rows, state)
    left = [number for number in mine if not artifacts.is_made(_file(folder, number), stamps[number])]
    advance(len(mine) - len(left))
    for start in range(0, len(left), TOGETHER):
        here = left[start : start + TOGETHER]
        for number, found in zip(here, sweep(opened, candidates, [scored[n] for n in here], rows, state), strict=True):
            tensors = {
                f"{address}|{name}": getattr(sums, name).contiguous()
                for address, sums in found.items()
                for name in ModuleSums._fields
            }
            artifacts.save_tensors(_file(folder, number), tensors, {"stamp": stamps[number]})
        advance(len(here))


def files(folder: Path, count: int) -> list[Path]:
    """Where the sums of passages 0 to ``count`` − 1 lie."""
    return [_file(folder, number) for number in range(count)]


def load(folder: Path, count: int, addresses: Sequence[str], rows: Sequence[Row]) -> Evidence:
    """Read what ``gather`` left of passages 0 to ``count`` − 1."""
    parts: dict[str, list[Tensor]] = {name: [] for name in ModuleSums._fields}
    for file in files(folder, count):
        tensors, _ = artifacts.load_tensors(file)
        for name, found in parts.items():
            found.append(torch.stack([tensors[f"{address}|{name}"] for address in addresses]))
    return Evidence(tuple(rows), **{name: torch.stack(found) for name, found in parts.items()})


def errors(
    opened: blocks.Blocks, candidates: Candidates, addresses: Sequence[str], updates: UpdatesFile | None = None
) -> Errors:
    """Read all candidates once more, beside the original weights."""
    found: dict[str, list[Tensor]] = {}

    def visit(index: int, block: nn.Module) -> None:
        for address, by_name in candidates.block(index + 1).items():
            weight = weight_of(block, opened.decoder[address]).cpu().float()
            delta = [(by_name[name].float() - weight).square().sum(0).double() for name in candidates.names]
            columns = torch.stack(delta)
            mean_abs, square = (each.double() for each in candidates.inputs(address))
            found[address] = [
                columns.sum(1),
                weight.square().sum(dtype=torch.float64)[None],
                torch.tensor([weight.numel()], dtype=torch.float64),
                columns @ mean_abs.square(),
                columns @ square,
            ]
            if updates is not None:
                found[address].append(columns @ channels(updates, [address]).double())

    walk(opened, range(opened.layers), visit)
    return Errors(*(torch.stack(list(column)) for column in zip(*(found[a] for a in addresses), strict=True)))


def _stamps(candidates: Candidates, scored: Sequence[Scored], rows: Sequence[Row], state: State) -> list[str]:
    common = artifacts.fingerprint(RULES, candidates.digest, [list(row) for row in rows], list(state))
    return [
        artifacts.fingerprint(
            common, each.tokens.tolist(), {name: w.tolist() for name, w in each.weights.items()}, each.seed
        )
        for each in scored
    ]


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.safetensors"
