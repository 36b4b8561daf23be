"""The walk through the blocks: each leaves a file with its changed tensors, from which a killed run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mixprec import modules
from mixprec.calibration.data import Calibration
from mixprec.checkpoint.base import CheckpointFormat
from mixprec.checkpoint.target import CompressedModule
from mixprec.compress.block import BlockResult, Flow, Group, compress_block
from mixprec.compress.module import KEPT, ModuleReport, OnModule
from mixprec.compress.options import SolveOptions
from mixprec.core import artifacts
from mixprec.models.source import COMPUTABLE, FLOATS, Source
from mixprec.modules import EMBEDDING, NORM, Inventory
from mixprec.plan.methods import Method
from mixprec.plan.schema import NEEDS_INPUTS, USES_INPUTS, Plan
from mixprec.walk import blocks


class Job(NamedTuple):
    """What is to be done, whatever has been done of it: the checkpoint, the plan, and how it is carried out."""

    source: Source
    inventory: Inventory
    plan: Plan
    calibration: Calibration | None
    options: SolveOptions
    dtype: str
    device: str
    format: CheckpointFormat

    @property
    def needs_inputs(self) -> set[Method]:
        """The plan's methods that can't do without the inputs of linears."""
        return self.plan.methods & NEEDS_INPUTS

    @property
    def seen(self) -> Calibration | None:
        """The calibration data, where a method of the plan looks at it."""
        return self.calibration if self.plan.methods & USES_INPUTS else None


class Walk:
    """``run`` compresses block after block; afterwards ``files`` hold what changed and ``reports`` what came of it."""

    def __init__(self, job: Job, folder: Path, stamp: str, on_module: OnModule | None) -> None:
        self.files: list[Path] = []
        self.reports: dict[str, ModuleReport] = {}
        self._job, self._folder, self._stamp, self._on_module = job, folder, stamp, on_module
        self._treatments = job.plan.treatments

    def run(self) -> None:
        """All blocks up to the last one that changes. Finished ones are only passed through, to go on behind them."""
        job = self._job
        calibration = job.seen
        # The norm has no part in it, but the model that hands out the blocks' inputs ends with it.
        outside = (EMBEDDING, NORM) if calibration is not None else ()
        # Where nothing runs through the blocks, the type is only that of the arithmetic on weights.
        dtype = "float32" if calibration is None else job.dtype
        opened = blocks.open_blocks(str(job.source.folder), dtype=dtype, device=job.device, outside=outside)
        flow = None if calibration is None else self._enter(opened, calibration)
        left = {modules.parse_address(address)[0] for address in job.plan.changed}
        for layer, groups in self._groups().items():
            if layer in left:
                left.remove(layer)
                flow = self._compress(opened, layer, groups, flow)
            else:
                self._report({m.address: KEPT for group in groups for m in group})
                if flow is not None and left:
                    flow = self._pass(opened, layer, flow)

    def _groups(self) -> dict[int, list[Group]]:
        """1-based layer -> its linears, those with one input together."""
        found: dict[int, list[Group]] = {}
        for group in modules.fused_groups(self._job.inventory):
            found.setdefault(group[0].layer, []).append(group)
        return found

    def _enter(self, opened: blocks.Blocks, calibration: Calibration) -> Flow:
        """The calibration tokens in front of the first block."""
        entering = blocks.block_inputs(opened.model, calibration.tokens)
        # All samples are as long as one another, so one stands for all of them.
        contexts = blocks.block_inputs(opened.model, calibration.tokens[:1]).contexts
        opened.model.get_input_embeddings().to("meta")
        full = entering.hidden if "gptaq" in self._job.needs_inputs else None
        weights = None if calibration.weights is None else calibration.weights.to(self._job.device)
        return Flow(entering.hidden, full, weights, contexts)

    @torch.no_grad()
    def _pass(self, opened: blocks.Blocks, layer: int, flow: Flow, changed: Mapping[str, Tensor] | None = None) -> Flow:
        """Through a block with the ``changed`` parameters (of its finished file), or as it is."""
        with opened.block(layer - 1) as block:
            full = None if flow.full is None else flow.through(layer - 1, block, flow.full)
            for name, tensor in (changed or {}).items():
                block.get_parameter(name).copy_(tensor)
            return flow._replace(hidden=flow.through(layer - 1, block, flow.hidden), full=full)

    def _compress(self, opened: blocks.Blocks, layer: int, groups: list[Group], flow: Flow | None) -> Flow | None:
        file = self._folder / f"{layer:05d}.safetensors"
        self.files.append(file)
        if artifacts.is_made(file, self._stamp):
            tensors, metadata = artifacts.load_tensors(file)
            self._report({address: ModuleReport(**report) for address, report in metadata["reports"].items()})
            return None if flow is None else self._pass(opened, layer, flow, self._restored(tensors, layer))
        stored = self._stored(layer)
        with opened.block(layer - 1) as block:
            architecture = opened.model.config.model_type
            result = compress_block(
                block, architecture, groups, self._treatments, stored, flow, self._job.options, self._on_module
            )
            self._save(file, layer, block, stored, result)
        self.reports |= result.reports
        return result.flow

    def _save(
        self, file: Path, layer: int, block: nn.Module, stored: Mapping[str, torch.dtype], result: BlockResult
    ) -> None:
        """Write a block's changed tensors, as the checkpoint will hold them, and its reports."""
        prefix = f"model.layers.{layer - 1}."
        tensors = {prefix + name: block.get_parameter(name).to(stored[name]).cpu() for name in sorted(result.folded)}
        for address, solved in result.solved.items():
            name = f"{address}.weight"
            restored = solved.restored.to(stored[name.removeprefix(prefix)])
            module = CompressedModule(name, self._treatments[address].format, solved.quantized, restored)
            packed = self._job.format.pack(module, self._job.plan)
            tensors |= {key: tensor.cpu() for key, tensor in packed.items()}
        reports = {address: report._asdict() for address, report in result.reports.items()}
        artifacts.save_tensors(file, tensors, {"stamp": self._stamp, "reports": reports})

    def _restored(self, tensors: Mapping[str, Tensor], layer: int) -> dict[str, Tensor]:
        """The parameters that a finished block's tensors stand for, by their names within the block."""
        job, prefix = self._job, f"model.layers.{layer - 1}."
        found = {name: tensor for name, tensor in tensors.items() if name in job.source.tensors}
        for address in job.plan.changed:
            if address.startswith(prefix):
                module = job.inventory[address]
                dtype = FLOATS[job.source.tensors[module.weight_name].dtype]
                found[module.weight_name] = job.format.restore(module, tensors, job.plan, dtype)
        return {name.removeprefix(prefix): tensor for name, tensor in found.items()}

    def _stored(self, layer: int) -> dict[str, torch.dtype]:
        """A block's parameters that can be computed with, by name within it, and their types in the checkpoint."""
        prefix = f"model.layers.{layer - 1}."
        tensors = self._job.source.tensors.items()
        known = {name: COMPUTABLE.get(info.dtype) for name, info in tensors if name.startswith(prefix)}
        return {name.removeprefix(prefix): dtype for name, dtype in known.items() if dtype is not None}

    def _report(self, reports: Mapping[str, ModuleReport]) -> None:
        self.reports |= reports
        for address, report in reports.items():
            if self._on_module:
                self._on_module(address, report)
