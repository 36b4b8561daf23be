"""Compress a loaded model in place: the same walk, solves and codes as a checkpoint's, the sink is the model itself."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mixprec.calibration.data import Calibration
from mixprec.compress.block import compress_block, compress_group, entering
from mixprec.compress.ggml import check_possible
from mixprec.compress.guided import Guidance, gather, wanted
from mixprec.compress.module import KEPT, ModuleReport, OnModule
from mixprec.compress.options import SolveOptions
from mixprec.compress.outside import around, final_inputs, token_inputs
from mixprec.compress.refining import Refine, looking
from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder, Group, Linear
from mixprec.models.experts import ExpertLinear, unstacked
from mixprec.models.sizes import check_architecture
from mixprec.models.tensors import check_finite
from mixprec.models.weights import linears_of, map_in, norm_of
from mixprec.numerics.statistics import InputStatistics
from mixprec.plan.methods import using_inputs
from mixprec.plan.schema import Plan, check_modules
from mixprec.walk.blocks import Live
from mixprec.walk.options import MEMORY_GB
from mixprec.walk.samples import Samples
from mixprec.walk.walk import walk


@torch.no_grad()
def compress_live(
    model: Any,
    plan: Plan,
    *,
    calibration: Calibration | None = None,
    options: SolveOptions = SolveOptions(),
    on_module: OnModule | None = None,
    memory_gb: float = MEMORY_GB,
    on_sample: Callable[[int], None] = lambda _: None,
    refine: Refine | None = None,
) -> dict[str, ModuleReport]:
    """Give the linears of a transformers ``model`` the weights that ``plan`` makes of them, in the model's own type.

    Nothing changes before everything was checked. ``memory_gb``, ``on_sample``, ``refine``: as in ``stream.compress``.
    Returns address -> report in the plan's order.

    Raises UserError as ``check_live`` does, for a plan of another model, and where calibration data is missing.
    """
    check_live(model)
    decoder = map_in(model)
    check_modules(plan, decoder, f"plan for {plan.model}")
    if plan.dropped:
        raise UserError(
            f"quantize_: the plan drops {len(plan.dropped)} modules of experts, and a loaded model keeps its shapes; "
            "write a checkpoint with mixprec.compress and load that"
        )
    if (needs := looking(plan, refine)) and calibration is None:
        raise UserError(f"{needs} and needs calibration data; give calibration=mixprec.calibrate(…)")
    check_possible((plan.formats[address] for address in plan.changed), calibration is not None)
    seen = calibration if refine is not None or using_inputs(plan.methods) else None
    work = _InPlace(model, decoder, plan, options, on_module, refine)
    training = model.training
    model.eval()
    try:
        with unstacked(model), tempfile.TemporaryDirectory(prefix="mixprec-") as spilled:
            work.run(seen, Path(spilled), memory_gb, on_sample)
    finally:
        model.train(training)
    return work.reports


class _InPlace:
    """The walk up a loaded model, whose linears get new weights."""

    def __init__(
        self,
        model: Any,
        decoder: Decoder,
        plan: Plan,
        options: SolveOptions,
        on_module: OnModule | None,
        refine: Refine | None,
    ) -> None:
        self._model, self._decoder, self._plan = model, decoder, plan
        self._options, self._on_module, self._refine = options, on_module, refine
        self._samples: Samples | None = None
        self._guidance: Guidance | None = None
        #: Blocks, by number from 0, in which something changes.
        self._left = {decoder[address].layer - 1 for address in plan.changed} - {-1}
        self.reports = dict.fromkeys(plan.modules, KEPT)

    def run(self, seen: Calibration | None, spilled: Path, memory_gb: float, on_sample: Callable[[int], None]) -> None:
        """From the embedding to the head; ``spilled``: for states that don't fit into memory."""
        model, plan, products = self._model, self._plan, self._options.products
        outside = around(plan, self._decoder, calibrated=seen is not None)
        if seen is not None:
            if (spec := wanted(plan.methods, self._options, seen)) is not None:
                where = spilled / "guidance"
                self._guidance = gather(Live(model), "", seen, spec, where, on_sample, memory_gb, products)
            full = self._refine is not None
            self._samples = entering(model, seen, plan.methods, memory_gb, spilled, full=full, products=products)
        for linear in outside.before:
            method = plan.treatments[linear.address].method
            self._solve(linear, token_inputs(linear.in_features, method, model.device))
            if self._samples is not None and linear.kind == "embedding":
                self._samples.enter(model)
        last = self._decoder.layers - 1 if outside.behind else max(self._left, default=-1)
        walk(Live(model), sorted(self._left) if self._samples is None else range(last + 1), self._visit)
        for linear in outside.behind:
            assert self._samples is not None
            self._solve(linear, final_inputs(self._samples, norm_of(model), plan.treatments[linear.address].method))

    def _visit(self, index: int, block: nn.Module) -> None:
        if index in self._left:
            groups, stored = self._decoder.blocks[index].groups, _types(block)
            result = compress_block(
                block, groups, self._plan.treatments, stored, self._samples, self._options, self._on_module,
                self._guidance, self._refine,
            )  # fmt: skip
            self.reports.update(result.reports)
        elif self._samples is not None:
            for stream in self._samples.streams:
                self._samples.run(index, block, stream=stream)

    def _solve(self, linear: Linear, statistics: InputStatistics | None) -> None:
        """What lies outside the blocks."""
        model, group = self._model, Group((linear,))
        treatments, options = self._plan.treatments, self._options
        result = compress_group(model, group, treatments, _types(model), statistics, options, self._on_module)
        self.reports.update(result.reports)


def _types(module: nn.Module) -> dict[str, torch.dtype]:
    return {name: parameter.dtype for name, parameter in module.named_parameters()}


def check_live(model: Any) -> None:
    """A model that can be compressed where it is.

    Raises UserError for what is no model of transformers, is quantized already, lies on the meta device or on several
    devices, has linears of another kind or with one weight in common, or weights that are NaN or infinite.
    """

    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"quantize_: {type(model).__name__} is no PreTrainedModel of transformers; give the model itself, "
            "without wrappers"
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise UserError("quantize_: the model is quantized already; load the original in 16 or 32 bits")
    devices = {str(parameter.device) for parameter in model.parameters()}
    if "meta" in devices:
        raise UserError("quantize_: the model lies on the meta device and has no weights; load them first")
    if len(devices) > 1:
        raise UserError(
            f"quantize_: the model lies on {', '.join(sorted(devices))}; load it on one device, or use "
            "mixprec.compress, which needs no more memory than a block"
        )
    check_architecture(model.config, "quantize_")
    owners: dict[torch.Tensor, str] = {}
    with unstacked(model):
        linears = linears_of(model)
    for name, linear in linears.items():
        if type(linear) not in (nn.Linear, ExpertLinear):
            raise UserError(f"quantize_: {name} is a {type(linear).__name__}, not a Linear; remove what wraps it first")
        other = owners.setdefault(linear.weight, name)
        if other != name:
            raise UserError(f"quantize_: {name} has its weight in common with {other}; give each one of its own")
    for name, parameter in model.named_parameters():
        check_finite(f"quantize_: {name}", parameter)
