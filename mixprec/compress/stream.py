"""Compress a checkpoint into another, block by block: one decoder block, its statistics and the calibration states are
in memory, whatever the model's size.

Each finished block lies in a folder of its own beside the target, ``.NAME.blocks``, with a stamp of all that it depends
on: a killed run continues with the first block that is missing and ends with the same bytes. When all are there, the
checkpoint is put together from them and from what the source has, file by file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch

from mixprec.calibration.data import Calibration
from mixprec.checkpoint import fewer, modelcard
from mixprec.checkpoint.base import CheckpointFormat, Finish, check_plan, space
from mixprec.checkpoint.dense import DENSE
from mixprec.checkpoint.integrity import card_of, verify
from mixprec.checkpoint.publish import complete
from mixprec.checkpoint.target import CompressedModule, blocks_folder, check_space, check_target
from mixprec.compress import RULES, guided, updates
from mixprec.compress.blockfile import LAYOUT, opened
from mixprec.compress.coverage import warn
from mixprec.compress.ggml import check_possible
from mixprec.compress.module import DROPPED, ModuleReport, OnModule
from mixprec.compress.options import SolveOptions
from mixprec.compress.refining import Refine, looking, settings_of
from mixprec.compress.walk import Job, Walk, reports_in
from mixprec.core import artifacts, locks, processes, publish
from mixprec.core.devices import dtype_of
from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder, Linear
from mixprec.models.model import Model
from mixprec.models.source import FLOATS, Source
from mixprec.models.tensors import COMPUTABLE, check_finite, take
from mixprec.plan.dropping import kept, without
from mixprec.plan.schema import Plan, check_modules, without_dropped
from mixprec.walk.options import MEMORY_GB


class Between(Protocol):
    """What changes the numbers in blocks' files between solving and packing."""

    @property
    def described(self) -> Mapping[str, Any]:
        """What decides the outcome besides what was solved; JSON."""

    def __call__(self, model: Model, files: Sequence[Path], folder: Path, stamp: str) -> list[Path]:
        """Files of ``folder`` with the layout of the blocks' ``files`` that take their place, or these themselves.

        ``stamp``: of these. What a killed run left in ``folder`` is continued.
        """


def compress(
    model: Model,
    plan: Plan,
    out: Path,
    *,
    calibration: Calibration | None = None,
    options: SolveOptions = SolveOptions(),
    format: CheckpointFormat = DENSE,
    on_module: OnModule | None = None,
    base_model: str | None = None,
    memory_gb: float = MEMORY_GB,
    guidance: Path | None = None,
    on_sample: Callable[[int], None] = lambda _: None,
    refine: Refine | None = None,
    tune: Between | None = None,
) -> dict[str, ModuleReport]:
    """Write the checkpoint ``out``: ``model`` with its linear modules compressed as ``plan`` says.

    ``calibration``: tokens that methods see which look at a linear's inputs; their activations are computed in the
    model's ``dtype``, on its ``device``. ``format``: how the checkpoint is written.
    Modules that the plan keeps and all other tensors are copied byte for byte, but for norms and biases that AWQ folds
    a scale into. The folder has the source's shards (of formats that have shards), configuration and tokenizer, and
    mixprec.json with plan and provenance; it appears when it is complete.
    ``base_model``: the model's id on the hub, for the card. ``memory_gb``: 10^9 bytes of calibration states in memory
    (more of them go to the disk), and as many for what they leave inside a block. ``guidance``: a folder where the
    saliences of guided solves stay for other plans; else they go with the blocks. ``on_sample`` is told of each sample
    that has its. ``refine``: what is made of each block's modules together, once they are solved; it needs calibration
    data. ``tune``: changes scales and the like when all blocks are solved. Experts that the plan drops are left out
    first, into a checkpoint beside ``out`` that goes at the end; all else is done to the model without them. Returns
    address -> report in the plan's order.

    Raises UserError for a plan that doesn't fit the checkpoint or ``format``, or needs calibration data and has none,
    missing or broken files, NaN or infinite weights, a target that mixprec did not make, and too little space for it.

    Of the processes of a launcher each has its part of the samples, whose sums are added up, and of each solve its part
    of the rows; the main one writes. They come to the numbers of one process but for the order of these sums
    (docs/howto/cluster.md).
    """
    out = Path(os.path.realpath(out))  # a link to a folder elsewhere stays
    shared = processes.count() > 1
    if shared and (refine is not None or tune is not None):
        raise UserError("compress: tuning works in one process; start mixprec without torchrun, or leave tuning out")
    inventory = model.original.inventory
    job = Job(model, inventory, plan, calibration, options, memory_gb, guidance, on_sample, refine, shared)
    check_job(job, out, format, base_model)
    beside = out.with_name(f".{out.name}.experts")
    with _without_dropped(job, beside) as smaller:
        card = _card(job, format) | _said_of_experts(job) | {"plan": smaller.plan.model_dump(mode="json")}
        reports = _compress(smaller, job, out, format, card, on_module, base_model, tune)
    dropped = dict.fromkeys(plan.dropped, DROPPED)
    if on_module is not None:
        for address, report in dropped.items():
            on_module(address, report)
    there = without(job.inventory, kept(plan.dropped, job.inventory)) if dropped else zip(reports, reports, strict=True)
    reports = dropped | {address: reports[own] for address, own in there if own in reports}
    return {address: reports[address] for address in plan.modules}


@contextmanager
def _without_dropped(job: Job, folder: Path) -> Iterator[Job]:
    """The job on the model without the experts that its plan drops, whose checkpoint is in ``folder`` meanwhile."""
    numbers = kept(job.plan.dropped, job.inventory)
    if not numbers:
        yield job
        return
    opened = job.model.original
    with locks.target(folder):
        stamp = artifacts.fingerprint(RULES, job.model.identity, {str(layer): each for layer, each in numbers.items()})
        with processes.main_first() if job.shared else nullcontext():
            if processes.is_main() and (card_of(folder).get("stamp") != stamp or not verify(folder)):
                fewer.write(opened.source, opened.shapes, job.inventory, numbers, folder, stamp)
            processes.check_shared([folder] if job.shared else [])
        model = Model(folder, dtype=job.model.dtype, device=job.model.device)
        plan = without_dropped(job.plan, job.inventory)
        yield job._replace(model=model, inventory=model.original.inventory, plan=plan)
        if processes.is_main():
            publish.remove(folder)


def _compress(
    job: Job,
    asked: Job,
    out: Path,
    format: CheckpointFormat,
    card: dict[str, Any],
    on_module: OnModule | None,
    base_model: str | None,
    tune: Between | None,
) -> dict[str, ModuleReport]:
    """As ``compress``, of a checked job that drops nothing, for what was ``asked``; ``card``: for mixprec.json."""
    model, plan, calibration, options = job.model, job.plan, job.calibration, job.options
    base = asked.model.original
    source, inventory, config = model.original.source, job.inventory, model.original.shapes
    work = blocks_folder(out)
    with locks.target(out, work):
        stamp = artifacts.fingerprint(RULES, LAYOUT, {**card, "git_revision": None, "mixprec": None})
        if tune is not None:
            card["tune"] = dict(tune.described)
        walk = Walk(job, work, stamp, on_module)
        walk.run()
        if job.shared and not processes.is_main():
            processes.wait()
            return walk.reports
        files = walk.files if tune is None else tune(model, walk.files, work / "tuned", stamp)
        reports = walk.reports | {address: report for path in files for address, report in reports_in(path).items()}
        warn(reports, options.experts)
        with publish.scratch(work / "packed") as packed, publish.atomic_path(out) as folder:
            folder.mkdir()
            made = Finish(source, pack(files, packed, format, plan, inventory), folder, plan, inventory, config)
            format.finish(made)
            told = modelcard.Told(base_model, calibration.described if calibration else None)
            whole = Finish(base.source, made.blocks, folder, asked.plan, asked.inventory, base.shapes)
            complete(whole, format, told, card)
        publish.remove(work)
    if job.shared:
        processes.wait()
    return reports


def check_job(job: Job, out: Path, format: CheckpointFormat, base_model: str | None) -> None:
    """All that can be told before any work. Raises UserError as ``compress`` does."""
    model, plan, inventory, calibration = job.model, job.plan, job.inventory, job.calibration
    source, config = model.original.source, model.original.shapes
    modelcard.base_model(plan.model, source.folder, base_model)
    check_modules(plan, inventory, f"plan for {plan.model}")
    check_plan(format, plan, inventory, config)
    format.check(source, config)
    check_target(out, source.folder)
    fewer.left(plan, inventory, config)
    needed = space(format, plan, inventory, config, source) + _meanwhile(job)
    check_space(out, needed + guided.disk(plan.methods, job.options, calibration, inventory))
    check_outside(source, inventory, plan)
    if (needs := looking(plan, job.refine)) and calibration is None:
        raise UserError(
            f"{needs} and needs calibration data; give compress.calibration in a recipe, --text or --traces on the "
            "command line"
        )
    if job.options.updates is not None:
        updates.require(job.options.updates, model.identity, inventory)
    check_possible((plan.formats[address] for address in plan.changed), calibration is not None)
    if job.seen:
        check_dtype(source, inventory.planned(plan.modules), model.dtype)


def _meanwhile(job: Job) -> int:
    """Bytes of the checkpoint without dropped experts, from which the rest is made."""
    numbers, source = kept(job.plan.dropped, job.inventory), job.model.original.source
    left = fewer.Renaming(job.inventory, numbers).source(source).tensors if numbers else {}
    return sum(info.bytes for info in left.values())


def _card(job: Job, format: CheckpointFormat) -> dict[str, Any]:
    """What mixprec.json says of how a checkpoint was made."""
    model, calibration = job.model, job.calibration
    return artifacts.provenance(
        source=model.origin | {"identity": model.identity},
        plan=job.plan.model_dump(mode="json"),
        calibration=calibration.described | {"digest": calibration.digest} if calibration else None,
        compress={"dtype": model.dtype, "device": _device(job), **job.options.model_dump(), **settings_of(job.refine)},
        checkpoint={"format": format.name},
    )


def _device(job: Job) -> str:
    """Where it is computed; of several processes each has a device of its own."""
    return torch.device(job.model.device).type if job.shared else job.model.device


def _said_of_experts(job: Job) -> dict[str, Any]:
    """Layer -> the original's numbers of the experts that stay, where some don't."""
    numbers = kept(job.plan.dropped, job.inventory)
    return {"experts": {str(layer): list(each) for layer, each in numbers.items()}} if numbers else {}


def pack(files: Iterable[Path], folder: Path, format: CheckpointFormat, plan: Plan, inventory: Decoder) -> list[Path]:
    """Files of ``folder`` with the tensors of a checkpoint in ``format``, for the blocks of ``files``.

    Raises UserError as ``format.pack`` does.
    """
    found = []
    for path in files:
        with opened(path) as block:
            tensors = block.other
            for address, made in block.modules.items():
                module = CompressedModule(
                    inventory[address].weight_name, plan.formats[address], made.quantized, made.restored
                )
                tensors |= {name: tensor.cpu() for name, tensor in format.pack(module, plan).items()}
        found.append(folder / path.name)
        artifacts.save_tensors(found[-1], tensors)
    return found


def check_dtype(source: Source, modules: Iterable[Linear], dtype: str) -> None:
    """Weights of ``modules`` keep their values in the type that is computed in.

    Raises UserError naming the tensor where they don't.
    """
    for module in modules:
        stored = COMPUTABLE[source.tensors[module.weight_name].dtype]
        if torch.promote_types(dtype_of(dtype), stored) != dtype_of(dtype):
            raise UserError(
                f"model.dtype: {dtype} can't hold {module.weight_name}, which is stored as {stored}; "
                "compress in float32 or in the checkpoint's own type"
            )


def check_outside(source: Source, decoder: Decoder, plan: Plan) -> None:
    """What lies outside the blocks is finite, and of a type that can be compressed where the plan does so: better told
    now than when all blocks are done.

    Raises UserError naming the tensor.
    """
    for name in (linear.weight_name for linear in decoder.outside if linear.address in plan.changed):
        if source.tensors[name].dtype not in FLOATS:
            raise UserError(
                f"{source.folder}: {name} is stored as {source.tensors[name].dtype}, which is not compressed; "
                f"{', '.join(FLOATS)} are; leave its line out of the plan"
            )
    for shard in source.shards:
        with artifacts.open_tensors(source.folder / shard) as file:
            for name, info in source.tensors.items():
                if info.shard == shard and not name.startswith(f"{decoder.blocks_path}."):
                    check_finite(f"{source.folder / shard}: {name}", take(file, name, info))
