"""Methods that scale the inputs of linears (``Solver.scale``): scales are folded into a block that is compressed, and
taken back where a weight is solved for on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mixprec.compress import folding, updates
from mixprec.compress.methods import SOLVERS, solve
from mixprec.compress.options import SolveOptions
from mixprec.compress.solving import GroupInputs, Scaled, Sharing, Solved
from mixprec.models.decoder import Group
from mixprec.models.weights import weight_of
from mixprec.numerics.formats import Drop, Keep
from mixprec.numerics.groupwise import scale_dtype_of
from mixprec.numerics.statistics import InputStatistics
from mixprec.numerics.storage import unscaled
from mixprec.plan.schema import Treatment


class Prepared(NamedTuple):
    """``changed``: parameters that scales were folded into, by name within the block. ``told``: address -> what is told
    of the scale of a module's inputs."""

    changed: set[str]
    told: dict[str, float]


def scaler(treatments: Iterable[Treatment]) -> Callable[[Sharing], Scaled] | None:
    """What searches the scale of inputs that modules with these treatments share; None where none asks for one."""
    changing = (each for each in treatments if each.changes and not isinstance(each.format, Drop))
    solvers = (SOLVERS[treatment.method] for treatment in changing)
    return next((solver.scale for solver in solvers if solver.scale is not None), None)


def prepare_block(
    block: nn.Module,
    groups: Sequence[Group],
    treatments: Mapping[str, Treatment],
    stored: Mapping[str, torch.dtype],
    statistics: Callable[[Group], InputStatistics],
    options: SolveOptions,
) -> Prepared:
    """Scale the inputs of the groups whose methods ask for it, and fold the scales into ``block``, in place.

    As compress.block.compress_block; ``statistics``: of a group's inputs in the uncompressed block.
    """
    kept = {m.address for group in groups for m in group if isinstance(treatments[m.address].format, Keep)}
    found: list[tuple[Group, Scaled]] = []
    told: dict[str, float] = {}
    for group, seen_by in folding.joined(groups):
        scale = scaler(treatments[module.address] for module in group)
        if scale is not None:
            seen = statistics(seen_by)
            scaled = scale(
                Sharing(
                    weights=[weight_of(block, module) for module in group],
                    formats=[treatments[module.address].format for module in group],
                    kinds=tuple(module.kind for module in group),
                    statistics=seen,
                    freedom=folding.freedom(group, kept),
                    tie=folding.tie(group, seen.hessian.device),
                    scale_dtype=scale_dtype_of(stored[group[0].parameter]),
                    options=options,
                    channels=updates.shared(options.updates, group),
                )
            )
            found.append((group, scaled))
            told |= dict.fromkeys((module.address for module in group), scaled.told)
    changed: set[str] = set()
    # Only now: v and up belong to two groups each, and are searched as they are.
    for group, scaled in found:
        folded = folding.fold(block, group, scaled.scale, kept=kept, stored=stored[group[0].parameter])
        changed |= set(folded.changed)
    return Prepared(changed, told)


def solve_alone(
    group: Group,
    weights: Mapping[str, Tensor],
    treatment: Treatment,
    inputs: GroupInputs | None,
    options: SolveOptions,
) -> dict[str, Solved]:
    """Each of the ``weights`` (out, in) of a group with ``treatment``, where all else stays as it is in the model.

    Where a method scales the inputs, W' with W' x what it makes of W x: the scaled weight solved for, divided by the
    scale.
    """
    every = dict.fromkeys(weights, treatment.on_original_inputs)
    scale = scaler(every.values())
    if scale is None:
        return solve(weights, every, inputs, options)
    assert inputs is not None  # who scales inputs looks at them
    statistics = inputs.statistics
    by = scale(
        Sharing(
            weights=list(weights.values()),
            formats=[treatment.format] * len(group),
            kinds=tuple(module.kind for module in group),
            statistics=statistics,
            freedom=folding.freedom(group, ()),
            tie=folding.tie(group, statistics.hessian.device),
            scale_dtype=scale_dtype_of(next(iter(weights.values())).dtype),
            options=options,
            channels=updates.shared(options.updates, group),
        )
    ).scale
    scaled = {address: (weight.float() * by).to(weight.dtype) for address, weight in weights.items()}
    found = solve(scaled, every, GroupInputs(folding.divided(statistics, by), options), options)
    return {address: each._replace(restored=unscaled(each.restored, by), scale=by) for address, each in found.items()}
