"""The methods' solvers by name, and what is made with them of a group of linears that share their input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from mixprec.compress import anyk, awq, ggml, gptaq, gptq, magnitude, rtn, sparsegpt, wanda
from mixprec.compress.options import SolveOptions
from mixprec.compress.solving import GroupInputs, Solved, Solver, Task, plain
from mixprec.numerics import storage
from mixprec.numerics.formats import Drop, Keep
from mixprec.numerics.hessian import SingularHessian
from mixprec.plan.methods import guidable, needing_inputs
from mixprec.plan.schema import Treatment

#: Method (plan.methods.METHODS has their records) -> how it solves.
SOLVERS: Final[dict[str, Solver]] = {
    "rtn": rtn.SOLVER,
    "gptq": gptq.SOLVER,
    "gptaq": gptaq.SOLVER,
    "awq": awq.SOLVER,
    "anyk": anyk.SOLVER,
    "ggml": ggml.SOLVER,
    "sparsegpt": sparsegpt.SOLVER,
    "wanda": wanda.SOLVER,
    "magnitude": magnitude.SOLVER,
}


def solve(
    weights: Mapping[str, Tensor],
    treatments: Mapping[str, Treatment],
    inputs: GroupInputs | None,
    options: SolveOptions,
    rests: bool = False,
) -> dict[str, Solved]:
    """Compress the ``weights`` (out, in) of a group, each in its stored type, as their ``treatments`` say.

    ``inputs``: None for methods that need none, and where no token came to the group: the weights alone decide then.
    ``rests``: as in Task.
    """
    solved: dict[str, Solved] = {}
    together: dict[object, list[str]] = {}
    for address, treatment in treatments.items():
        if isinstance(treatment.format, Drop):  # looked at by itself, where it still has a place
            solved[address] = plain(torch.zeros_like(weights[address]))
            continue
        if inputs and address in inputs.parts and guidable([treatment.method]):
            parts = inputs.parts[address]
            tasks = [Task([address], weights[address][rows], treatment, own, options, rests) for rows, own in parts]
            solved[address] = joined([_solve(task) for task in tasks])
            continue
        stacked = SOLVERS[treatment.method].stacks
        together.setdefault((treatment, weights[address].dtype) if stacked else address, []).append(address)
    for addresses in together.values():
        stack = torch.cat([weights[address] for address in addresses])
        found = _solve(Task(addresses, stack, treatments[addresses[0]], inputs, options, rests))
        rows = [len(weights[address]) for address in addresses]
        solved |= dict(zip(addresses, _split(found, rows), strict=True))
    return solved


def _solve(task: Task) -> Solved:
    if task.given is None and needing_inputs([task.treatment.method]):
        return _instead(task, "magnitude")
    try:
        return SOLVERS[task.treatment.method].solve(task)
    except SingularHessian:
        return _instead(task, "wanda")


def _instead(task: Task, pruner: str) -> Solved:
    """What comes closest where no Hessian is known, or can be solved with: no column makes up for another.

    ``pruner``: the method that sets weights to zero, where some are to be.
    """
    if task.treatment.sparsity is None:
        return rtn.SOLVER.solve(task)._replace(fallback="rtn")
    pruned = SOLVERS[pruner].solve(task)
    if isinstance(task.treatment.format, Keep):
        return pruned._replace(fallback=pruner)
    # Zero is on every grid, so what was pruned stays so.
    return rtn.SOLVER.solve(task._replace(weight=pruned.restored))._replace(fallback=f"{pruner}, rtn")


def joined(parts: Sequence[Solved]) -> Solved:
    """The parts of a weight's rows as one; of their factors the one that needed most damping stands for all."""
    factors = [part.factor for part in parts if part.factor is not None]
    rests = [part.rests for part in parts if part.rests is not None]
    return parts[0]._replace(
        restored=torch.cat([part.restored for part in parts]),
        quantized=storage.join([part.quantized for part in parts]),
        factor=max(factors, key=lambda factor: factor.damping, default=None),
        fallback=next((part.fallback for part in parts if part.fallback), ""),
        rests=torch.cat(rests) if len(rests) == len(parts) else None,
    )


def _split(found: Solved, rows: list[int]) -> list[Solved]:
    """A stacked result as one for each weight."""
    rests = [None] * len(rows) if found.rests is None else found.rests.split(rows)
    parts = zip(found.restored.split(rows), storage.split(found.quantized, rows), rests, strict=True)
    return [found._replace(restored=restored, quantized=quantized, rests=rest) for restored, quantized, rest in parts]
