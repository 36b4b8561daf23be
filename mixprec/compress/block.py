"""One decoder block: every group of linears that share an input gets one Hessian and one solve.

The calibration set goes through the block once. When it reaches a group, the inputs' statistics are taken, the group's
modules are compressed and get their new weights, and the pass goes on: every module is solved for the inputs that it
will have in the compressed model, behind compressed modules of the same block too ("true sequential" in GPTQ's
released code). AWQ looks at the uncompressed block first, GPTAQ at the uncompressed model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixprec import modules
from mixprec.compress import awq, folding
from mixprec.compress.methods import solve
from mixprec.compress.module import KEPT, ModuleReport, OnModule, measure
from mixprec.compress.options import SolveOptions
from mixprec.compress.solving import GroupInputs, Solved
from mixprec.core.errors import UserError
from mixprec.modules import LinearModule
from mixprec.numerics.formats import AnyFormat, Keep
from mixprec.numerics.groupwise import scale_dtype_of
from mixprec.numerics.statistics import InputStatistics, InputSums
from mixprec.plan.schema import USES_INPUTS, Treatment

#: Rows of inputs that are turned to float32 at once.
_ROWS = 16_384

Group = Sequence[LinearModule]


class Flow(NamedTuple):
    """The calibration samples on their way: ``hidden`` (N, T, hidden), behind the compressed blocks so far.

    ``full``: the same in the uncompressed model, where a method asks for it. ``weights`` (N, T) of the tokens, or None
    for equal ones. ``contexts``: each block's other arguments.
    """

    hidden: Tensor
    full: Tensor | None
    weights: Tensor | None
    contexts: list[dict[str, Any]]

    def through(self, index: int, block: nn.Module, hidden: Tensor) -> Tensor:
        """The output (N, T, hidden) of the model's block number ``index``."""
        output: Tensor = block(hidden, **self.contexts[index])
        return output


class BlockResult(NamedTuple):
    """``solved``: address -> what a method made of the module. ``folded``: other parameters that AWQ changed, by name
    within the block. ``flow``: what enters the next block."""

    solved: dict[str, Solved]
    folded: set[str]
    reports: dict[str, ModuleReport]
    flow: Flow | None


@torch.no_grad()
def compress_block(
    block: nn.Module,
    architecture: str,
    groups: Sequence[Group],
    treatments: Mapping[str, Treatment],
    stored: Mapping[str, torch.dtype],
    flow: Flow | None,
    options: SolveOptions,
    on_module: OnModule | None = None,
) -> BlockResult:
    """Compress the linears of ``block`` in place; afterwards it holds the values that the checkpoint will hold.

    ``architecture``: the model's type. ``groups``: the block's linears, those that share an input together, in the
    order in which they work. ``stored``: the type of each parameter in the checkpoint, by its name within the block.
    Without ``flow`` only methods that need no inputs work.

    Raises UserError for inputs that are NaN or infinite, and for weights that a format can't hold.
    """
    work = _Work(block, architecture, groups, treatments, stored, options, on_module)
    if flow is None:
        for group in groups:
            work.compress(group, None)
        return BlockResult(work.solved, set(), work.reports, None)
    index = groups[0][0].layer - 1
    full = flow.full
    full_inputs: dict[int, Tensor] = {}
    if full is not None:
        with watching(block, groups, full_inputs.__setitem__):
            full = flow.through(index, block, full)
    if any(treatments[module.address].method == "awq" for group in groups for module in group):
        work.fold(flow, index)

    def reach(number: int, inputs: Tensor) -> None:
        work.reach(groups[number], inputs, flow.weights, full_inputs.pop(number, None))

    with watching(block, groups, reach):
        hidden = flow.through(index, block, flow.hidden)
    return BlockResult(work.solved, work.folded, work.reports, flow._replace(hidden=hidden, full=full))


class _Work:
    """What ``compress_block`` does to one block."""

    def __init__(
        self,
        block: nn.Module,
        architecture: str,
        groups: Sequence[Group],
        treatments: Mapping[str, Treatment],
        stored: Mapping[str, torch.dtype],
        options: SolveOptions,
        on_module: OnModule | None,
    ) -> None:
        self.solved: dict[str, Solved] = {}
        self.folded: set[str] = set()
        self.reports: dict[str, ModuleReport] = {}
        self._scales: dict[str, float] = {}
        self._architecture = architecture
        self._block, self._groups, self._treatments, self._stored = block, groups, treatments, stored
        self._options, self._on_module = options, on_module

    def reach(self, group: Group, inputs: Tensor, weights: Tensor | None, full: Tensor | None) -> None:
        """Compress a group whose inputs (N, T, in) are there; ``full``: those of the uncompressed model."""
        methods = {self._treatments[module.address].method for module in group if self._changes(module)}
        if not methods & USES_INPUTS:
            self.compress(group, None)
            return
        sums = InputSums(inputs.shape[-1], drift=full is not None, device=inputs.device)
        _add(sums, inputs, weights, full)
        statistics = sums.result()
        if not torch.isfinite(statistics.hessian).all():
            raise UserError(
                f"{group[0].address}: its inputs are NaN or infinite on the calibration data; compute in float32 "
                "or bfloat16 (model.dtype), or keep the modules before it"
            )
        self.compress(group, GroupInputs(statistics, self._options))

    def compress(self, group: Group, inputs: GroupInputs | None) -> None:
        """Solve a group's modules and give them their new weights."""
        changing = {m.address: self._treatments[m.address] for m in group if self._changes(m)}
        weights = {m.address: self._weight(m).to(self._stored[_weight_name(m)]) for m in group if self._changes(m)}
        solved = solve(weights, changing, inputs, self._options)
        hessian = inputs.statistics.hessian if inputs else None
        for module in group:
            report = KEPT
            if module.address in solved:
                found = solved[module.address]
                report = _report(changing[module.address], found, self._scales.get(module.address))
                report = measure(module.address, weights[module.address], found.restored, hessian, report)
                self._weight(module).copy_(found.restored)
            self.reports[module.address] = report
            if self._on_module:
                self._on_module(module.address, report)
        self.solved |= solved

    def fold(self, flow: Flow, index: int) -> None:
        """AWQ: search a scale for each group's inputs on the uncompressed block, and fold it in."""
        sums = [InputSums(group[0].in_features, device=flow.hidden.device) for group in self._groups]
        with watching(self._block, self._groups, lambda number, inputs: _add(sums[number], inputs, flow.weights)):
            flow.through(index, self._block, flow.hidden)
        kept = {m.kind for group in self._groups for m in group if isinstance(self._format(m), Keep)}
        found = {}
        for group, seen in zip(self._groups, sums, strict=True):
            if any(self._treatments[module.address].method == "awq" and self._changes(module) for module in group):
                found[tuple(module.kind for module in group)] = self._search_scale(group, seen.result(), kept)
        # Only now: v and up belong to two groups each, and are searched as they are.
        for kinds, scale in found.items():
            stored = self._stored[f"{modules.KINDS[kinds[0]]}.weight"]
            folded = folding.fold(self._block, self._architecture, kinds, scale, kept=kept, stored=stored)
            self.folded |= set(folded.changed)
        self.folded -= {_weight_name(module) for group in self._groups for module in group if self._changes(module)}

    def _search_scale(self, group: Group, statistics: InputStatistics, kept: set[str]) -> Tensor:
        kinds = tuple(module.kind for module in group)
        found = awq.search_scale(
            [self._weight(module) for module in group],
            [self._format(module) for module in group],
            statistics,
            freedom=folding.freedom(self._architecture, kinds, kept),
            tie=folding.tie(self._block, self._architecture, kinds),
            scale_dtype=scale_dtype_of(self._stored[_weight_name(group[0])]),
            clipped=[self._options.clips(module.kind) for module in group],
        )
        summary = awq.summarise(statistics.mean_abs.pow(found.ratio))
        self._scales |= dict.fromkeys((module.address for module in group), summary.mean)
        return found.scale

    def _format(self, module: LinearModule) -> AnyFormat:
        return self._treatments[module.address].format

    def _changes(self, module: LinearModule) -> bool:
        return self._treatments[module.address].changes

    def _weight(self, module: LinearModule) -> Tensor:
        return _linear(self._block, module).weight


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


def _weight_name(module: LinearModule) -> str:
    """Name of a module's weight within its block."""
    return f"{modules.KINDS[module.kind]}.weight"


def _linear(block: nn.Module, module: LinearModule) -> nn.Linear:
    linear = block.get_submodule(modules.KINDS[module.kind])
    assert isinstance(linear, nn.Linear)
    return linear


def _add(sums: InputSums, inputs: Tensor, weights: Tensor | None, full: Tensor | None = None) -> None:
    """Add inputs (N, T, in) some samples at a time."""
    step = max(1, _ROWS // inputs.shape[1])
    for start in range(0, len(inputs), step):
        where = slice(start, start + step)
        sums.add(inputs[where], None if weights is None else weights[where], None if full is None else full[where])


@contextmanager
def watching(block: nn.Module, groups: Sequence[Group], call: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call ``call(number of the group, inputs)`` before the first linear of each group that the pass inside reaches."""
    reached: set[int] = set()

    def reach(number: int, inputs: Tensor) -> None:
        if number not in reached:
            reached.add(number)
            call(number, inputs)

    with ExitStack() as stack:
        for number, group in enumerate(groups):
            for module in group:
                hook = _linear(block, module).register_forward_pre_hook(
                    lambda _module, arguments, number=number: reach(number, arguments[0])
                )
                stack.callback(hook.remove)
        yield
