"""Methods that scale the inputs of linears (``Solver.scale``): scales are folded into a block that is compressed, and
taken back where a weight is solved for on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mixprec import modules
from mixprec.compress import folding
from mixprec.compress.methods import SOLVERS, solve
from mixprec.compress.options import SolveOptions
from mixprec.compress.solving import GroupInputs, Scaled, Sharing, Solved
from mixprec.numerics.formats import Keep
from mixprec.numerics.groupwise import scale_dtype_of
from mixprec.numerics.statistics import InputStatistics
from mixprec.numerics.storage import unscaled
from mixprec.plan.schema import Treatment
from mixprec.walk.hooks import Group


class Prepared(NamedTuple):
    """``changed``: parameters that scales were folded into, by name within the block. ``told``: address -> what is told
    of the scale of a module's inputs."""

    changed: set[str]
    told: dict[str, float]


def scaler(treatments: Iterable[Treatment]) -> Callable[[Sharing], Scaled] | None:
    """What searches the scale of inputs that modules with these treatments share; None where none asks for one."""
    solvers = (SOLVERS[treatment.method] for treatment in treatments if treatment.changes)
    return next((solver.scale for solver in solvers if solver.scale is not None), None)


def prepare_block(
    block: nn.Module,
    architecture: str,
    groups: Sequence[Group],
    treatments: Mapping[str, Treatment],
    stored: Mapping[str, torch.dtype],
    statistics: Iterable[InputStatistics],
    options: SolveOptions,
) -> Prepared:
    """Scale the inputs of the groups whose methods ask for it, and fold the scales into ``block``, in place.

    As compress.block.compress_block; ``statistics``: of each group's inputs in the uncompressed block.
    """
    kept = {m.kind for group in groups for m in group if isinstance(treatments[m.address].format, Keep)}
    found: dict[tuple[str, ...], Scaled] = {}
    told: dict[str, float] = {}
    for group, seen in zip(groups, statistics, strict=True):
        scale = scaler(treatments[module.address] for module in group)
        if scale is not None:
            kinds = tuple(module.kind for module in group)
            found[kinds] = scale(
                Sharing(
                    weights=[block.get_parameter(_name(module.kind)) for module in group],
                    formats=[treatments[module.address].format for module in group],
                    kinds=kinds,
                    statistics=seen,
                    freedom=folding.freedom(architecture, kinds, kept),
                    tie=folding.tie(block, architecture, kinds),
                    scale_dtype=scale_dtype_of(stored[_name(kinds[0])]),
                    options=options,
                )
            )
            told |= dict.fromkeys((module.address for module in group), found[kinds].told)
    changed: set[str] = set()
    # Only now: v and up belong to two groups each, and are searched as they are.
    for kinds, scaled in found.items():
        held = stored[_name(kinds[0])]
        folded = folding.fold(block, architecture, kinds, scaled.scale, kept=kept, stored=held)
        changed |= set(folded.changed)
    return Prepared(changed, told)


def solve_alone(
    block: nn.Module,
    architecture: str,
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
    kinds, statistics = tuple(module.kind for module in group), inputs.statistics
    by = scale(
        Sharing(
            weights=list(weights.values()),
            formats=[treatment.format] * len(group),
            kinds=kinds,
            statistics=statistics,
            freedom=folding.freedom(architecture, kinds, ()),
            tie=folding.tie(block, architecture, kinds),
            scale_dtype=scale_dtype_of(next(iter(weights.values())).dtype),
            options=options,
        )
    ).scale
    hessian = statistics.hessian / by[:, None] / by
    seen = statistics._replace(hessian=hessian, mean_abs=statistics.mean_abs / by)
    scaled = {address: (weight.float() * by).to(weight.dtype) for address, weight in weights.items()}
    found = solve(scaled, every, GroupInputs(seen, options), options)
    return {address: each._replace(restored=unscaled(each.restored, by), scale=by) for address, each in found.items()}


def _name(kind: str) -> str:
    """Name of a weight within its block."""
    return f"{modules.KINDS[kind]}.weight"
