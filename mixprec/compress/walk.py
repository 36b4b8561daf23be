"""The walk through the blocks: each leaves a file with what was made of it, from which a killed run continues."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from mixprec.calibration.data import Calibration
from mixprec.compress.block import BlockResult, compress_block, compress_group, entering
from mixprec.compress.blockfile import MADE, BlockFile, file_of, opened
from mixprec.compress.guided import Guidance, guide
from mixprec.compress.module import KEPT, ModuleReport, OnModule
from mixprec.compress.options import SolveOptions
from mixprec.compress.outside import around, final_inputs, token_inputs
from mixprec.compress.refining import Refine
from mixprec.core import artifacts, processes, publish
from mixprec.models.decoder import Block, Decoder, Group, Linear
from mixprec.models.model import Model
from mixprec.models.source import Source
from mixprec.models.tensors import COMPUTABLE
from mixprec.models.weights import norm_of, weight_of
from mixprec.numerics.formats import fitting
from mixprec.numerics.statistics import InputStatistics
from mixprec.plan.methods import using_inputs
from mixprec.plan.schema import Plan
from mixprec.walk import blocks
from mixprec.walk.options import MEMORY_GB
from mixprec.walk.samples import FULL, Samples
from mixprec.walk.walk import walk


class Job(NamedTuple):
    """What is to be done, whatever has been done of it: the checkpoint, the plan, and how it is carried out.

    ``guidance``: where saliences lie, by default beside the blocks; ``on_sample`` is told of each sample that has its.
    ``shared``: the processes of a launcher share the samples and the solves; the main one writes.
    """

    model: Model
    inventory: Decoder
    plan: Plan
    calibration: Calibration | None
    options: SolveOptions
    memory_gb: float = MEMORY_GB
    guidance: Path | None = None
    on_sample: Callable[[int], None] = lambda _: None
    refine: Refine | None = None
    shared: bool = False

    @property
    def source(self) -> Source:
        """The checkpoint's tensors."""
        return self.model.source

    @property
    def seen(self) -> Calibration | None:
        """The calibration data, where a method of the plan or who refines blocks looks at it."""
        return self.calibration if self.refine is not None or using_inputs(self.plan.methods) else None


class Walk:
    """``run`` compresses block after block; afterwards ``files`` hold what changed and ``reports`` what came of it."""

    def __init__(self, job: Job, folder: Path, stamp: str, on_module: OnModule | None) -> None:
        self._job, self._folder, self._stamp, self._on_module = job, folder, stamp, on_module
        self._treatments = job.plan.treatments
        self._around = around(job.plan, job.inventory, calibrated=job.seen is not None)
        changing = {job.inventory[address].layer for address in job.plan.changed} - {0}
        #: 1-based layer -> the file of a block that changes; address -> that of a matrix outside the blocks.
        keys: list[int | str] = [*sorted(changing)]
        keys += [linear.address for linear in self._around.all]
        self._files = {key: file_of(folder, key) for key in keys}
        self.files = list(self._files.values())
        self.reports: dict[str, ModuleReport] = {}
        self._guidance: Guidance | None = None

    @torch.no_grad()
    def run(self) -> None:
        """All blocks up to the last one that isn't done; samples pass through finished ones to go on behind them."""
        job = self._job
        left = {key for key, file in self._files.items() if not artifacts.is_made(file, self._stamp)}
        if job.shared:
            left = processes.agree(left)
            processes.check_shared(file for key, file in self._files.items() if key not in left)
        for linear in job.inventory.planned(job.plan.modules):
            if (linear.layer or linear.address) not in self._files:
                self._report({linear.address: KEPT})
        for key in [key for key in self._files if key not in left]:
            self._report(reports_in(self._files[key]))
        if not left:
            return
        calibration = job.seen
        if any(isinstance(key, int) for key in left):
            where = job.guidance or self._folder / "guidance"
            methods, advance = job.plan.methods, job.on_sample
            self._guidance = guide(
                job.model, methods, calibration, job.options, where, advance, job.memory_gb, job.shared
            )
        # The norm has no part in blocks, but the model that hands out their inputs ends with it.
        wanted = {"embedding", "norm"} if calibration is not None else set()
        wanted |= {linear.kind for linear in self._around.all if linear.address in left}
        outside = [part for part in blocks.OUTSIDE if part in wanted]
        # Where nothing runs through the blocks, the type is only that of the arithmetic on weights.
        model = job.model.computed(dtype="float32") if calibration is None else job.model
        weights = model.open_blocks(outside)
        with publish.scratch(self._folder / f"states{processes.rank() or ''}") as spilled:
            samples = None
            if calibration is not None:
                samples = entering(
                    weights.model,
                    calibration,
                    job.plan.methods,
                    job.memory_gb,
                    spilled,
                    full=job.refine is not None,
                    products=job.options.products,
                    shared=job.shared,
                )
            for linear in self._around.before:
                if linear.address in left:
                    method = self._treatments[linear.address].method
                    given = token_inputs(linear.in_features, method, weights.device)
                    self._compress_outside(linear, weights.model, given)
                elif samples is not None and linear.kind == "embedding":
                    self._restore(_as_block(linear), weights.model)
                if samples is not None and linear.kind == "embedding":
                    samples.enter(weights.model)
            behind = [linear for linear in self._around.behind if linear.address in left]
            if samples is not None and not any(linear.kind == "embedding" for linear in behind):
                weights.model.get_input_embeddings().to("meta")

            def visit(index: int, block: nn.Module) -> None:
                if index + 1 in left:
                    self._compress(job.inventory.blocks[index], block, samples)
                elif samples is not None:
                    self._pass(index, block, samples)

            inside = sorted(key for key in left if isinstance(key, int))
            last = job.inventory.layers if behind else max(inside, default=0)
            order = inside if samples is None else range(1, last + 1)
            walk(weights, [layer - 1 for layer in order], visit)
            for linear in behind:
                assert samples is not None
                given = final_inputs(samples, norm_of(weights.model), self._treatments[linear.address].method)
                self._compress_outside(linear, weights.model, given)

    def _pass(self, index: int, block: nn.Module, samples: Samples) -> None:
        """Through a block with the parameters of its finished file, or as it is."""
        if FULL in samples.streams:
            samples.run(index, block, stream=FULL)
        if index + 1 in self._files:
            self._restore(self._job.inventory.blocks[index], block)
        samples.run(index, block)

    def _restore(self, known: Block, block: nn.Module) -> None:
        """Give a block, or the model with what is outside, the parameters of its finished file."""
        with opened(self._files[_key(known)]) as file:
            for name, tensor in file.other.items():
                block.get_parameter(name.removeprefix(known.prefix)).copy_(tensor)
            for linear in known.linears:
                if linear.address in file.formats:
                    weight_of(block, linear).copy_(file.weight(linear.address))

    def _compress_outside(self, linear: Linear, model: nn.Module, statistics: InputStatistics | None) -> None:
        known = _as_block(linear)
        stored = self._stored(known)
        result = compress_group(
            model, known.groups[0], self._treatments, stored, statistics, self._job.options, self._on_module
        )
        self._save(known, model, stored, result)
        self.reports |= result.reports

    def _compress(self, known: Block, block: nn.Module, samples: Samples | None) -> None:
        stored, job = self._stored(known), self._job
        result = compress_block(
            block,
            known.groups,
            self._treatments,
            stored,
            samples,
            job.options,
            self._on_module,
            self._guidance,
            job.refine,
        )
        self._save(known, block, stored, result)
        self.reports |= result.reports

    def _save(self, known: Block, block: nn.Module, stored: Mapping[str, torch.dtype], result: BlockResult) -> None:
        """Write what became of a block's modules and other tensors that changed, and its reports."""
        if self._job.shared and not processes.is_main():
            return
        file, source = BlockFile(), self._job.source.tensors
        for name in sorted(result.folded):
            file.put(f"{known.prefix}{name}", block.get_parameter(name).to(stored[name]))
        for address, solved in result.solved.items():
            linear = self._job.inventory[address]
            file.add_module(linear, source[linear.weight_name].dtype, None)
            file.add(address, MADE, solved, fitting(self._treatments[address].format, linear.in_features))
        reports = {address: report._asdict() for address, report in result.reports.items()}
        file.save(self._files[_key(known)], self._stamp, reports)

    def _stored(self, known: Block) -> dict[str, torch.dtype]:
        """A block's parameters that can be computed with, by name within it, and their types in the checkpoint."""
        prefix = known.prefix
        tensors = self._job.source.tensors.items()
        types = {name: COMPUTABLE.get(info.dtype) for name, info in tensors if name.startswith(prefix)}
        return {name.removeprefix(prefix): dtype for name, dtype in types.items() if dtype is not None}

    def _report(self, reports: Mapping[str, ModuleReport]) -> None:
        self.reports |= reports
        for address, report in reports.items():
            if self._on_module:
                self._on_module(address, report)


def _as_block(linear: Linear) -> Block:
    """A matrix outside the blocks as who works on blocks sees it."""
    return Block(0, "", (Group((linear,)),))


def _key(known: Block) -> int | str:
    return known.layer or known.linears[0].address


def reports_in(path: Path) -> dict[str, ModuleReport]:
    """Address -> what a block's file says of a module."""
    with opened(path) as file:
        return {address: ModuleReport(**report) for address, report in file.reports.items()}
