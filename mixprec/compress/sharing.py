"""A group's solves shared among the processes of a launcher, which all have the same weights and statistics.

Rows don't see one another in methods that stack, so each process solves its part of them; of other methods' modules,
and of experts, each is solved by one process. All have all results in the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mixprec.compress.methods import SOLVERS, joined, solve
from mixprec.compress.options import SolveOptions
from mixprec.compress.solving import GroupInputs, Solved
from mixprec.core import processes
from mixprec.numerics import storage
from mixprec.numerics.formats import Drop
from mixprec.plan.schema import Treatment


class Asked(NamedTuple):
    """The first arguments of methods.solve."""

    weights: Mapping[str, Tensor]
    treatments: Mapping[str, Treatment]
    inputs: GroupInputs | None


def solve_shared(
    weights: Mapping[str, Tensor],
    treatments: Mapping[str, Treatment],
    inputs: GroupInputs | None,
    options: SolveOptions,
    rests: bool = False,
) -> dict[str, Solved]:
    """As methods.solve, which says what the arguments are, by all processes together.

    Of a factor that another process has only its damping comes.
    """
    rank, count = processes.rank(), processes.count()
    parted = {
        address for address in treatments if _by_rows(len(weights[address]), treatments[address], address, inputs)
    }
    whole = [address for address in treatments if address not in parted]
    own = [whole[number] for number in processes.share([weights[address].numel() for address in whole], rank, count)]
    mine = {address: weights[address] for address in own} | {address: _rows(weights[address]) for address in parted}
    asked = {address: treatment for address, treatment in treatments.items() if address in mine}
    found = solve(mine, asked, inputs, options, rests) if mine else {}
    given = processes.each_gives({address: _small(each) for address, each in found.items()})
    solved = {}
    for address in treatments:
        parts = [_on(each[address], weights[address].device) for each in given if address in each]
        solved[address] = parts[0] if len(parts) == 1 else joined(parts)
    return solved


def solve_apart(
    asked: Sequence[Asked], options: SolveOptions, *, rests: bool = False, shared: bool = False
) -> list[dict[str, Solved]]:
    """What methods.solve makes of each; ``shared``: each by one of the processes, and all have all of it in the end."""
    if not shared:
        return [solve(*each, options, rests) for each in asked]
    rank, count = processes.rank(), processes.count()
    mine = {number: solve(*asked[number], options, rests) for number in range(rank, len(asked), count)}
    small = {number: {address: _small(one) for address, one in found.items()} for number, found in mine.items()}
    given = processes.each_gives(small)
    return [
        {
            address: _on(one, asked[number].weights[address].device)
            for address, one in given[number % count][number].items()
        }
        for number in range(len(asked))
    ]


def _by_rows(rows: int, treatment: Treatment, address: str, inputs: GroupInputs | None) -> bool:
    """Whether a weight's rows are shared; those that tokens count differently for are solved where they are."""
    guided = inputs is not None and address in inputs.parts
    stacks = not isinstance(treatment.format, Drop) and SOLVERS[treatment.method].stacks
    return stacks and not guided and rows >= processes.count()


def _rows(weight: Tensor) -> Tensor:
    """This process's part of a weight's rows."""
    rank, count = processes.rank(), processes.count()
    return weight[len(weight) * rank // count : len(weight) * (rank + 1) // count]


def _small(found: Solved) -> Solved:
    """A result as it goes to the others: on the CPU, each tensor in memory of its own, without the factor's matrix."""
    factor = found.factor
    if factor is not None:
        factor = factor._replace(upper=torch.empty(0), order=None, dead=torch.empty(0, dtype=torch.bool))
    return _on(found, "cpu", copy=True)._replace(factor=factor)


def _on(found: Solved, device: torch.device | str, copy: bool = False) -> Solved:
    return found._replace(
        restored=found.restored.to(device, copy=copy),
        quantized=storage.on_device(found.quantized, device, copy=copy),
        scale=None if found.scale is None else found.scale.to(device, copy=copy),
        rests=None if found.rests is None else found.rests.to(device, copy=copy),
    )
