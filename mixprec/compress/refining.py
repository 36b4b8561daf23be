"""What may be made of a block's linears together once each of them is solved: the seam between solvers and tuning.

Who compresses hands a ``Refine`` down to ``compress_block``. It is called once for each block, with the calibration
samples still in front of it, and gives back other codes and grids for modules that it made better. Nothing here, and no
solver, knows how (mixprec/tune/).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mixprec.compress.solving import Solved
from mixprec.models.decoder import Group
from mixprec.plan.methods import needing_inputs
from mixprec.plan.schema import Plan, Treatment
from mixprec.walk.samples import Samples


class SolvedBlock(NamedTuple):
    """A block whose linears hold the weights that were ``solved``, by address.

    ``number``: its place in the model, from 0. ``stored``: the type of each parameter in the checkpoint, by its name
    within the block. ``rests``: address -> (out, in), what rounding took from each weight as its method compensated it.
    ``samples``: in front of the block; behind the original block in the uncompressed model's stream (samples.FULL).
    """

    number: int
    block: nn.Module
    groups: Sequence[Group]
    treatments: Mapping[str, Treatment]
    stored: Mapping[str, torch.dtype]
    solved: Mapping[str, Solved]
    rests: Mapping[str, Tensor]
    samples: Samples


class Refined(NamedTuple):
    """``solved``: modules that changed. ``ratio``: the squared error of the block's output over that before, on samples
    by which nothing was tuned; 1 where nothing was gained."""

    solved: Mapping[str, Solved]
    ratio: float


class Refine(Protocol):
    """Makes more of a block. The block may come back with any weights in it."""

    @property
    def settings(self) -> Mapping[str, object]:
        """All that the result depends on, as JSON, for stamps of finished blocks."""
        ...

    def __call__(self, solved: SolvedBlock) -> Refined: ...


def settings_of(refine: Refine | None) -> dict[str, object]:
    """For provenance: nothing where nobody refines."""
    return {} if refine is None else dict(refine.settings)


def looking(plan: Plan, refine: Refine | None) -> str:
    """Who can't do without the inputs of linears, for an error; empty where nobody."""
    if needed := needing_inputs(plan.methods):
        return f"method {', '.join(sorted(needed))} looks at the inputs of linears"
    return "" if refine is None else "tuning blocks looks at their outputs"
