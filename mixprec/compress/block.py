"""One decoder block: every group of linears that share an input gets one Hessian and one solve.

A micro-batch of samples goes through the block once. When it reaches a group, the other micro-batches are taken there
too, the inputs' statistics are taken, the group's modules are compressed and get their new weights, and the pass goes
on: every module is solved for the inputs that it will have in the compressed model, behind compressed modules of the
same block too ("true sequential" in GPTQ's released code). Methods that scale inputs (AWQ) look at the uncompressed
block first, those that ask for the original's states (GPTAQ) at the uncompressed model's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixprec.calibration.data import Calibration
from mixprec.compress.guided import GroupWeights, Guidance, group_weights
from mixprec.compress.methods import solve
from mixprec.compress.module import KEPT, ModuleReport, OnModule, measure
from mixprec.compress.options import SolveOptions
from mixprec.compress.refining import Refine, SolvedBlock
from mixprec.compress.scaling import prepare_block, scaler
from mixprec.compress.solving import GroupInputs, Solved
from mixprec.core.errors import UserError
from mixprec.models.decoder import Group, Linear
from mixprec.models.sizes import sizes_of
from mixprec.models.weights import weight_of
from mixprec.numerics.statistics import InputStatistics
from mixprec.plan.methods import guidable, using_inputs, wanting_original_states
from mixprec.plan.schema import Treatment
from mixprec.walk.hooks import watching
from mixprec.walk.samples import FULL, OWN, Gathering, Samples, Seen, batch_size
from mixprec.walk.states import States


def entering(
    model: Any, calibration: Calibration, methods: Collection[str], memory_gb: float, spilled: Path, full: bool = False
) -> Samples:
    """Calibration samples in front of the first block of ``model``, with the states that ``methods`` look at.

    ``full``: with the uncompressed model's states too in any case. ``memory_gb``: 10^9 bytes of states in memory (more
    of them go to files in ``spilled``), and as many for what a micro-batch leaves inside a block.
    """
    limit = int(memory_gb * 1e9)
    size = batch_size(sizes_of(model.config), calibration.tokens, model.dtype, limit)
    streams = (OWN, FULL) if full or wanting_original_states(methods) else (OWN,)
    return Samples(model, calibration, States(limit, spilled), size, streams=streams)


class BlockResult(NamedTuple):
    """``solved``: address -> what a method made of the module. ``folded``: other parameters that changed, by name
    within the block."""

    solved: dict[str, Solved]
    folded: set[str]
    reports: dict[str, ModuleReport]


@torch.no_grad()
def compress_block(
    block: nn.Module,
    groups: Sequence[Group],
    treatments: Mapping[str, Treatment],
    stored: Mapping[str, torch.dtype],
    samples: Samples | None,
    options: SolveOptions,
    on_module: OnModule | None = None,
    guidance: Guidance | None = None,
    refine: Refine | None = None,
) -> BlockResult:
    """Compress the linears of ``block`` in place; afterwards it holds the values that the checkpoint will hold.

    ``groups``: the block's linears, those that share an input together, in the
    order in which they work. ``stored``: the type of each parameter in the checkpoint, by its name within the block.
    ``samples`` end behind the block; without them only methods that need no inputs work. ``guidance``: of the samples'
    tokens, for methods that can be guided. ``refine``: what is made of the block's modules together, once they are
    solved; it needs samples in both streams.

    Raises UserError for inputs that are NaN or infinite, and for weights that a format can't hold.
    """
    work = _Work(block, groups, treatments, stored, options, on_module, refine)
    if samples is None:
        for group in groups:
            work.compress(group, None)
    else:
        work.walk(samples, groups[0][0].layer - 1, guidance)
    return BlockResult(work.solved, work.folded, work.reports)


@torch.no_grad()
def compress_group(
    block: nn.Module,
    group: Group,
    treatments: Mapping[str, Treatment],
    stored: Mapping[str, torch.dtype],
    statistics: InputStatistics | None,
    options: SolveOptions,
    on_module: OnModule | None = None,
) -> BlockResult:
    """As ``compress_block``, for one group whose inputs are known; None for methods that need none."""
    work = _Work(block, [group], treatments, stored, options, on_module)
    if statistics is None:
        work.compress(group, None)
    else:
        work.solve(group, GroupInputs(statistics, options))
    return BlockResult(work.solved, work.folded, work.reports)


class _Work:
    """What ``compress_block`` does to one block."""

    def __init__(
        self,
        block: nn.Module,
        groups: Sequence[Group],
        treatments: Mapping[str, Treatment],
        stored: Mapping[str, torch.dtype],
        options: SolveOptions,
        on_module: OnModule | None,
        refine: Refine | None = None,
    ) -> None:
        self.solved: dict[str, Solved] = {}
        self.folded: set[str] = set()
        self.reports: dict[str, ModuleReport] = {}
        self._scales: dict[str, float] = {}
        self._block, self._groups, self._treatments, self._stored = block, groups, treatments, stored
        self._options, self._on_module, self._refine = options, on_module, refine
        self._originals: dict[str, Tensor] = {}

    def walk(self, samples: Samples, index: int, guidance: Guidance | None) -> None:
        """Compress group after group and take the samples behind the block, the model's number ``index``."""
        methods = [{self._treatments[m.address].method for m in group if self._changes(m)} for group in self._groups]
        drifts = [bool(wanting_original_states(each)) for each in methods]
        if FULL in samples.streams:
            self._remember_full(samples, index, drifts)
        if scaler(self._treatments[module.address] for group in self._groups for module in group):
            self._prepare(samples, index)
        weights = self._weights(samples, guidance)
        *before, last = range(len(samples.batches))

        def reach(number: int, inputs: Tensor) -> None:
            group, drift, own = self._groups[number], drifts[number], weights[number]
            if not using_inputs(methods[number]):
                self.compress(group, None)
                return
            width, device = group[0].in_features, inputs.device
            sums = Gathering(width, samples.piece, count=own.sums, drift=drift, device=device)
            for each in (*before, last):
                given = inputs if each == last else samples.inputs(each, index, self._block, group)
                full = samples.states.pop((number, each)) if drift else None
                sums.add(Seen(given, samples.weighed(each, own.weights), full))
            self.solve(group, own.inputs(sums.results(), self._options))

        with watching(self._block, self._groups, reach):
            behind = samples.through(last, index, self._block)
        if self._refine is None:
            samples.states[OWN, last] = behind
        else:
            del behind  # what the block puts out before it is refined
            before.append(last)
            self._make_more(self._refine, samples, index)
        for each in before:
            samples.move(each, index, self._block)

    def _weights(self, samples: Samples, guidance: Guidance | None) -> list[GroupWeights]:
        """How the samples' tokens count for each group."""
        changing = [module for group in self._groups for module in group if self._changes(module)]
        guided = [module for module in changing if guidable([self._treatments[module.address].method])]
        if guidance is None or not guided:
            return [GroupWeights() for _ in self._groups]
        found = guidance.of(guided)
        return [group_weights(group, found, samples.weights) for group in self._groups]

    def _make_more(self, refine: Refine, samples: Samples, index: int) -> None:
        """Refine the block, and give its modules what came of it."""
        originals, self._originals = self._originals, {}
        if self.solved:
            rests = {
                address: originals[address].float() - found.restored if found.rests is None else found.rests
                for address, found in self.solved.items()
            }
            given = (self._block, self._groups, self._treatments, self._stored, self.solved, rests, samples)
            refined = refine(SolvedBlock(index, *given))
            self.solved |= refined.solved
            for address, found in self.solved.items():
                report = self.reports[address]
                now = measure(address, originals[address], found.restored, None, report)
                self.reports[address] = now._replace(output_error=report.output_error, tuned=refined.ratio)
        for module in (module for group in self._groups for module in group):
            if module.address in self.solved:
                self._weight(module).copy_(self.solved[module.address].restored)
            self._tell(module)

    def _tell(self, module: Linear) -> None:
        if self._on_module:
            self._on_module(module.address, self.reports[module.address])

    def _prepare(self, samples: Samples, index: int) -> None:
        """Scale the inputs of linears, by what the uncompressed block's are."""
        statistics = (found for (found,) in samples.statistics(index, self._block, self._groups))
        prepared = prepare_block(self._block, self._groups, self._treatments, self._stored, statistics, self._options)
        solved = {module.parameter for group in self._groups for module in group if self._changes(module)}
        self.folded |= prepared.changed - solved
        self._scales |= prepared.told

    def _remember_full(self, samples: Samples, index: int, wanted: Sequence[bool]) -> None:
        """Keep the inputs of the ``wanted`` groups in the uncompressed model, under (group, number of the batch)."""

        def keep(batch: int, number: int, inputs: Tensor) -> None:
            if wanted[number]:
                samples.states[number, batch] = inputs

        samples.run(index, self._block, self._groups, keep, stream=FULL)

    def solve(self, group: Group, inputs: GroupInputs) -> None:
        """Compress a group by its inputs."""
        if not torch.isfinite(inputs.statistics.hessian).all():
            raise UserError(
                f"{group[0].address}: its inputs are NaN or infinite on the calibration data; compute in float32 "
                "or bfloat16 (model.dtype), or keep the modules before it"
            )
        self.compress(group, inputs)

    def compress(self, group: Group, inputs: GroupInputs | None) -> None:
        """Solve a group's modules and give them their new weights."""
        changing = {m.address: self._treatments[m.address] for m in group if self._changes(m)}
        weights = {m.address: self._weight(m).to(self._stored[m.parameter]) for m in group if self._changes(m)}
        solved = solve(weights, changing, inputs, self._options, rests=self._refine is not None)
        if self._refine is not None:
            self._originals |= {address: weight.clone() for address, weight in weights.items()}
        hessian = inputs.statistics.hessian if inputs else None
        for module in group:
            report = KEPT
            if module.address in solved:
                found = solved[module.address]
                report = _report(changing[module.address], found, self._scales.get(module.address))
                report = measure(module.address, weights[module.address], found.restored, hessian, report)
                self._weight(module).copy_(found.restored)
            self.reports[module.address] = report
            if self._refine is None:  # else it is told when the block is refined
                self._tell(module)
        self.solved |= solved

    def _changes(self, module: Linear) -> bool:
        return self._treatments[module.address].changes

    def _weight(self, module: Linear) -> Tensor:
        return weight_of(self._block, module)


def _report(treatment: Treatment, found: Solved, scale: float | None) -> ModuleReport:
    factor = found.factor
    return ModuleReport(
        format=str(treatment.format),
        relative_error=0.0,
        method=treatment.method,
        damping=None if factor is None else factor.damping,
        retries=0 if factor is None else factor.retries,
        fallback=found.fallback,
        scale=scale,
    )
