"""One decoder block: every group of linears that share an input gets one Hessian and one solve.

A micro-batch of samples goes through the block once. When it reaches a group, the other micro-batches are taken there
too, the inputs' statistics are taken, the group's modules are compressed and get their new weights, and the pass goes
on: every module is solved for the inputs that it will have in the compressed model, behind compressed modules of the
same block too ("true sequential" in GPTQ's released code). Methods that scale inputs (AWQ) look at the uncompressed
block first, those that ask for the original's states (GPTAQ) at the uncompressed model's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixprec.calibration.data import Calibration
from mixprec.compress.experts import Routed, Sent, by_expert, sent_to, sets_of
from mixprec.compress.guided import GroupWeights, Guidance, group_weights
from mixprec.compress.methods import solve
from mixprec.compress.module import KEPT, ModuleReport, OnModule, measure
from mixprec.compress.options import SolveOptions
from mixprec.compress.refining import Refine, SolvedBlock
from mixprec.compress.scaling import prepare_block, scaler
from mixprec.compress.sharing import Asked, solve_apart, solve_shared
from mixprec.compress.solving import GroupInputs, Solved
from mixprec.core import processes
from mixprec.core.errors import UserError
from mixprec.models.decoder import Group, Linear, Norm
from mixprec.models.weights import map_in, module_of, weight_of
from mixprec.numerics.products import Products
from mixprec.numerics.statistics import InputStatistics
from mixprec.plan.methods import guidable, using_inputs, wanting_original_states
from mixprec.plan.schema import Treatment
from mixprec.walk.hooks import watching_modules
from mixprec.walk.samples import FULL, OWN, Samples, Seen, batch_size, part_of
from mixprec.walk.states import States


def entering(
    model: Any,
    calibration: Calibration,
    methods: Collection[str],
    memory_gb: float,
    spilled: Path,
    full: bool = False,
    products: Products = "model",
    shared: bool = False,
) -> Samples:
    """Calibration samples in front of the first block of ``model``, with the states that ``methods`` look at.

    ``full``: with the uncompressed model's states too in any case. ``memory_gb``: 10^9 bytes of states in memory (more
    of them go to files in ``spilled``), and as many for what a micro-batch leaves inside a block. ``products``: the
    type in which blocks and sums multiply. ``shared``: with the other processes, each of which has its part of the
    samples.
    """
    limit = int(memory_gb * 1e9)
    here = calibration.tokens[part_of(len(calibration.tokens))] if shared else calibration.tokens
    size = batch_size(map_in(model).sizes, here, model.dtype, limit)
    streams = (OWN, FULL) if full or wanting_original_states(methods) else (OWN,)
    states = States(limit, spilled)
    return Samples(model, calibration, states, size, streams=streams, products=products, shared=shared)


class Arrived(NamedTuple):
    """What a micro-batch, number ``batch``, comes with: the ``arguments`` of the module that it reached, and what the
    uncompressed model has in the place of the first, ``full``, where somebody looks at it."""

    arguments: tuple[Tensor, ...]
    full: Tensor | None
    batch: int


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
        self._shared = False

    def walk(self, samples: Samples, index: int, guidance: Guidance | None) -> None:
        """Compress group after group and take the samples behind the block, the model's number ``index``."""
        self._shared = samples.shared
        sets = sets_of(self._groups)
        methods = [
            {self._treatments[m.address].method for group in each for m in group if self._changes(m)} for each in sets
        ]
        drifts = [bool(wanting_original_states(each)) for each in methods]
        stations = [self._modules(each) for each in sets]
        if FULL in samples.streams:
            self._remember_full(samples, index, stations, drifts)
        if scaler(self._treatments[module.address] for group in self._groups for module in group):
            self._prepare(samples, index)
        weights = self._weights(samples, guidance, sets)
        *before, last = range(len(samples.batches))

        def reach(number: int, arguments: tuple[Tensor, ...]) -> None:
            if not using_inputs(methods[number]):
                for group in sets[number]:
                    self.compress(group, None)
                return
            given = (
                arguments if each == last else samples.arguments(each, index, self._block, stations[number])
                for each in (*before, last)
            )
            arrived = (
                Arrived(each, samples.states.pop((number, batch)) if drifts[number] else None, batch)
                for batch, each in enumerate(given)
            )
            if sets[number][0].routed is None:
                self._solve_group(sets[number][0], arrived, samples, weights[number], drifts[number])
            else:
                self._solve_experts(sets[number], arrived, samples, drifts[number])

        with watching_modules(stations, reach):
            behind = samples.through(last, index, self._block)
        if self._refine is None:
            samples.states[OWN, last] = behind
        else:
            del behind  # what the block puts out before it is refined
            before.append(last)
            self._make_more(self._refine, samples, index)
        for each in before:
            samples.move(each, index, self._block)

    def _modules(self, groups: Sequence[Group]) -> list[nn.Module]:
        """What is called with the inputs of groups that samples reach together."""
        routed = groups[0].routed
        if routed is not None:
            return [self._block.get_submodule(routed)]
        return [module_of(self._block, module) for module in groups[0]]

    def _solve_group(
        self, group: Group, arrived: Iterable[Arrived], samples: Samples, own: GroupWeights, drift: bool
    ) -> None:
        """Compress a group for the inputs that all micro-batches have."""
        device = next(self._block.parameters()).device
        sums = samples.gathering(group[0].in_features, own.sums, drift=drift, device=device)
        for each in arrived:
            inputs, weights = samples.shaped(each.batch, each.arguments[0]), samples.weighed(each.batch, own.weights)
            sums.add(Seen(inputs, weights, None if each.full is None else samples.shaped(each.batch, each.full)))
        self.solve(group, own.inputs(sums.results(), self._options))

    def _solve_experts(
        self, groups: Sequence[Group], arrived: Iterable[Arrived], samples: Samples, drift: bool
    ) -> None:
        """Compress a layer's routed experts, each for its tokens; one that none came to by rounding alone."""
        sent = [Sent.of(each.arguments, samples.weighed(each.batch), each.full) for each in arrived]
        assert groups[0].routed is not None
        options = self._options
        routed = Routed(self._block, groups[0].routed, sent, options.experts, options.products, samples.shared)
        experts, together = list(by_expert(groups).items()), processes.count() if samples.shared else 1
        for start in range(0, len(experts), together):
            here = experts[start : start + together]
            if drift:
                for number, _ in here:
                    routed.remember_full(number)
            # Experts don't see one another: of each the same group is solved, by a process each.
            for each in zip(*(own for _, own in here), strict=True):
                found = [
                    routed.statistics(number, group, drift=drift) for (number, _), group in zip(here, each, strict=True)
                ]
                inputs = [None if one is None else GroupInputs(one, self._options) for one in found]
                tokens = [routed.tokens(number) for number, _ in here]
                self._compress_each(list(zip(each, inputs, tokens, strict=True)))

    def _weights(
        self, samples: Samples, guidance: Guidance | None, sets: Sequence[Sequence[Group]]
    ) -> list[GroupWeights]:
        """How the samples' tokens count for each set of groups; routed experts are not guided."""
        alone = [each[0] for each in sets if each[0].routed is None]
        changing = [module for group in alone for module in group if self._changes(module)]
        guided = [module for module in changing if guidable([self._treatments[module.address].method])]
        if guidance is None or not guided:
            return [GroupWeights() for _ in sets]
        found = {address: each[samples.where] for address, each in guidance.of(guided).items()}
        return [group_weights(each[0], found, samples.weights) for each in sets]

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
        alone = [group for group in self._groups if group.routed is None]
        common = dict(zip(alone, samples.statistics(index, self._block, alone), strict=True))
        experts = {
            path: Routed(
                self._block,
                path,
                sent_to(samples, index, self._block, path),
                self._options.experts,
                self._options.products,
                samples.shared,
            )
            for path in dict.fromkeys(group.routed for group in self._groups if group.routed is not None)
        }

        def statistics(group: Group) -> InputStatistics:
            if group.routed is None:
                return common[group][0]
            return experts[group.routed].known(group, everyone=isinstance(group.source, Norm))

        prepared = prepare_block(self._block, self._groups, self._treatments, self._stored, statistics, self._options)
        solved = {module.parameter for group in self._groups for module in group if self._changes(module)}
        self.folded |= prepared.changed - solved
        self._scales |= prepared.told

    def _remember_full(
        self, samples: Samples, index: int, stations: Sequence[Sequence[nn.Module]], wanted: Sequence[bool]
    ) -> None:
        """Keep what the ``wanted`` stations are given in the uncompressed model, under (their number, that of the
        batch)."""
        for batch in range(len(samples.batches)):

            def keep(number: int, arguments: tuple[Tensor, ...], batch: int = batch) -> None:
                if wanted[number]:
                    samples.states[number, batch] = arguments[0]

            with watching_modules(stations, keep):
                samples.states[FULL, batch] = samples.through(batch, index, self._block, FULL)

    def solve(self, group: Group, inputs: GroupInputs) -> None:
        """Compress a group by its inputs."""
        _check_finite(group, inputs)
        self.compress(group, inputs)

    def compress(self, group: Group, inputs: GroupInputs | None) -> None:
        """Solve a group's modules and give them their new weights."""
        asked = self._asked(group, inputs)
        solving = solve_shared if self._shared else solve
        self._take(group, asked, solving(*asked, self._options, rests=self._refine is not None), None)

    def _compress_each(self, given: Sequence[tuple[Group, GroupInputs | None, int]]) -> None:
        """The same for groups that don't see one another, of which so many tokens came to each."""
        for group, inputs, _ in given:
            if inputs is not None:
                _check_finite(group, inputs)
        asked = [self._asked(group, inputs) for group, inputs, _ in given]
        solved = solve_apart(asked, self._options, rests=self._refine is not None, shared=self._shared)
        for (group, _, tokens), one, found in zip(given, asked, solved, strict=True):
            self._take(group, one, found, tokens)

    def _asked(self, group: Group, inputs: GroupInputs | None) -> Asked:
        changing = {m.address: self._treatments[m.address] for m in group if self._changes(m)}
        weights = {m.address: self._weight(m).to(self._stored[m.parameter]) for m in group if self._changes(m)}
        return Asked(weights, changing, inputs)

    def _take(self, group: Group, asked: Asked, solved: Mapping[str, Solved], tokens: int | None) -> None:
        """Give a group's modules their new weights."""
        weights, changing, inputs = asked
        if self._refine is not None:
            self._originals |= {address: weight.clone() for address, weight in weights.items()}
        hessian = inputs.statistics.hessian if inputs else None
        for module in group:
            report = KEPT
            if module.address in solved:
                found = solved[module.address]
                report = _report(changing[module.address], found, self._scales.get(module.address))
                report = measure(module.address, weights[module.address], found.restored, hessian, report)
                report = report._replace(tokens=tokens)
                self._weight(module).copy_(found.restored)
            self.reports[module.address] = report
            if self._refine is None:  # else it is told when the block is refined
                self._tell(module)
        self.solved |= solved

    def _changes(self, module: Linear) -> bool:
        return self._treatments[module.address].changes

    def _weight(self, module: Linear) -> Tensor:
        return weight_of(self._block, module)


def _check_finite(group: Group, inputs: GroupInputs) -> None:
    if not torch.isfinite(inputs.statistics.hessian).all():
        raise UserError(
            f"{group[0].address}: its inputs are NaN or infinite on the calibration data; compute in float32 "
            "or bfloat16 (model.dtype), or keep the modules before it"
        )


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
