"""Every module in every candidate treatment, solved once on the original model's inputs: what a plan may choose from.

The calibration samples go up through the uncompressed blocks. Linears that share their input share its statistics and
its Hessian's factor, for all candidates of one group size. Each block leaves a file with codes and grids, from
which a killed run continues, and which every scorer reads: they score each method's own error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mixprec.calibration.data import Calibration
from mixprec.compress import RULES, updates
from mixprec.compress.blockfile import LAYOUT, BlockFile, file_of
from mixprec.compress.candidatefiles import Candidates
from mixprec.compress.experts import Routed, sent_to
from mixprec.compress.guided import Guidance, group_weights
from mixprec.compress.options import SolveOptions
from mixprec.compress.outside import final_inputs, token_inputs
from mixprec.compress.scaling import solve_alone
from mixprec.compress.solving import GroupInputs, Solved
from mixprec.core import artifacts, publish
from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder, Group, Linear
from mixprec.models.tensors import COMPUTABLE
from mixprec.models.weights import norm_of, weight_of
from mixprec.numerics.formats import fitting
from mixprec.plan.methods import Method, using_inputs
from mixprec.plan.schema import Treatment
from mixprec.walk import blocks
from mixprec.walk.options import MEMORY_GB
from mixprec.walk.samples import Samples
from mixprec.walk.states import States
from mixprec.walk.walk import walk

#: Candidate's name -> what it does to a module.
Treatments = Mapping[str, Treatment]


def make(
    opened: blocks.Blocks,
    identity: str,
    inventory: Decoder,
    treatments: Treatments,
    calibration: Calibration | None,
    options: SolveOptions,
    folder: Path,
    advance: Callable[[int], None] = lambda _: None,
    memory_gb: float = MEMORY_GB,
    guidance: Guidance | None = None,
    outside: Sequence[Linear] = (),
) -> Candidates:
    """Solve all linears of the blocks in ``opened`` for all ``treatments``, and the matrices ``outside`` them, into
    ``folder``.

    ``identity``: the model's. ``calibration``: None for methods that look at no inputs. ``advance`` is told of each
    module that is done. ``memory_gb``: 10^9 bytes of calibration states in memory; more of them go to the disk.
    ``guidance``: of the calibration data, where ``options`` ask for one.

    Raises UserError for inputs that are NaN or infinite and weights that a format can't hold.
    """
    if options.updates is not None:
        updates.require(options.updates, identity, inventory)
    stamp = artifacts.fingerprint(
        RULES,
        identity,
        {name: found.model_dump(mode="json") for name, found in treatments.items()},
        [
            calibration.digest if calibration else None,
            options.model_dump(),
            str(opened.model.dtype),
            opened.device,
            LAYOUT,
        ],
    )
    work = _Work(opened, treatments, options, folder, stamp, guidance)
    groups = {block.layer: block.groups for block in inventory.blocks}
    done = [layer for layer in groups if artifacts.is_made(file_of(folder, layer), stamp)]
    left = [linear for linear in outside if not artifacts.is_made(file_of(folder, linear.address), stamp)]
    advance(len(outside) - len(left))
    if left or len(done) < len(groups):
        _walk(work, groups, done, calibration, int(memory_gb * 1e9), advance, left)
    else:
        advance(len(inventory.linears))
    return Candidates(folder, list(treatments), stamp)


class _Work(NamedTuple):
    """What is done to each block of the model in ``opened``."""

    opened: blocks.Blocks
    treatments: Treatments
    options: SolveOptions
    folder: Path
    stamp: str
    guidance: Guidance | None

    def solve(self, index: int, block: nn.Module, groups: Sequence[Group], samples: Samples | None) -> None:
        """Write a block's file; ``samples`` end behind the block."""
        file = BlockFile()
        for group, inputs in zip(groups, self._inputs(index, block, groups, samples), strict=True):
            stored = {module.address: self.opened.source.tensors[module.weight_name].dtype for module in group}
            for module in group:
                file.add_module(module, stored[module.address], None if inputs is None else inputs.statistics)
            types = {address: COMPUTABLE[dtype] for address, dtype in stored.items()}
            for address, name, found in solved(block, group, self.treatments, inputs, self.options, types):
                file.add(address, name, found, fitting(self.treatments[name].format, group[0].in_features))
        file.save(file_of(self.folder, index + 1), self.stamp)

    def solve_outside(self, linear: Linear, samples: Samples | None) -> None:
        """Write the file of a matrix outside the blocks, behind which the samples are."""
        model, file, dtype = self.opened.model, BlockFile(), self.opened.source.tensors[linear.weight_name].dtype
        file.add_module(linear, dtype, None)
        by_method: dict[Method, dict[str, Treatment]] = {}
        for name, treatment in self.treatments.items():
            by_method.setdefault(treatment.on_original_inputs.method, {})[name] = treatment
        for method, treatments in by_method.items():
            seen = token_inputs(linear.in_features, method, self.opened.device) if samples is not None else None
            if samples is not None and linear == self.opened.decoder.outside[-1]:
                seen = final_inputs(samples, norm_of(model), method)
            inputs = None if seen is None else GroupInputs(seen, self.options)
            types = {linear.address: COMPUTABLE[dtype]}
            for address, name, found in solved(model, Group((linear,)), treatments, inputs, self.options, types):
                file.add(address, name, found, fitting(treatments[name].format, linear.in_features))
        file.save(file_of(self.folder, linear.address), self.stamp)

    def _inputs(
        self, index: int, block: nn.Module, groups: Sequence[Group], samples: Samples | None
    ) -> Iterator[GroupInputs | None]:
        if samples is None:
            yield from [None] * len(groups)
            return
        alone = [group for group in groups if group.routed is None]
        experts = {
            path: Routed(block, path, sent_to(samples, index, block, path), self.options.experts, self.options.products)
            for path in dict.fromkeys(group.routed for group in groups if group.routed is not None)
        }
        guiding = self.guidance.of(module for group in alone for module in group) if self.guidance else {}
        weights = [group_weights(group, guiding, samples.weights) for group in alone]
        seen = samples.statistics(index, block, alone, [each.weights for each in weights], move=True)
        common = (own.inputs(found, self.options) for own, found in zip(weights, seen, strict=True))
        for group in groups:
            if group.routed is None:
                yield next(common)
            else:
                # What no token came to is solved for all of the layer's, so that each candidate has a score.
                yield GroupInputs(experts[group.routed].known(group), self.options)


@torch.no_grad()
def _walk(
    work: _Work,
    groups: Mapping[int, Sequence[Group]],
    done: Sequence[int],
    calibration: Calibration | None,
    memory: int,
    advance: Callable[[int], None],
    outside: Sequence[Linear],
) -> None:
    with publish.scratch(work.folder / "states") as spilled:
        samples = None
        if calibration is not None:
            states, products = States(memory, spilled), work.options.products
            samples = Samples(work.opened.model, calibration, states, 1, piece=1, products=products)

        def visit(index: int, block: nn.Module) -> None:
            here = groups[index + 1]
            if index + 1 not in done:
                work.solve(index, block, here, samples)
            elif samples:
                samples.run(index, block)
            advance(sum(len(group) for group in here))

        walk(work.opened, range(work.opened.layers), visit)
        for linear in outside:
            work.solve_outside(linear, samples)
            advance(1)


def solved(
    block: nn.Module,
    group: Group,
    treatments: Treatments,
    inputs: GroupInputs | None,
    options: SolveOptions,
    stored: Mapping[str, torch.dtype],
) -> Iterator[tuple[str, str, Solved]]:
    """Address, candidate, and what takes the original's place, for a group that shares inputs.

    ``stored``: address -> the weight's type in the checkpoint. Scales of inputs are taken back, so that the weight is
    compared with the original one. Raises UserError as ``make`` does.
    """
    if inputs is not None and not torch.isfinite(inputs.statistics.hessian).all():
        raise UserError(
            f"{group[0].address}: its inputs are NaN or infinite on the calibration data; compute in float32 or "
            "bfloat16 (model.dtype)"
        )
    weights: dict[str, Tensor] = {
        module.address: weight_of(block, module).to(stored[module.address]) for module in group
    }
    for name, treatment in treatments.items():
        given = inputs if using_inputs([treatment.method]) else None
        made = solve_alone(group, weights, treatment, given, options)
        for address, found in made.items():
            if not torch.isfinite(found.restored).all():
                raise UserError(f"{address}.weight: too large for {name} with scales in 16 bits; leave out this format")
            yield address, name, found
