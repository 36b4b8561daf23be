"""One packed format into another without loss: codes and scales stay as they are, only their places change."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from mixprec.checkpoint import modelcard
from mixprec.checkpoint.base import CheckpointFormat, Finish, check_plan, space
from mixprec.checkpoint.integrity import verify
from mixprec.checkpoint.publish import complete
from mixprec.checkpoint.reader import Checkpoint
from mixprec.checkpoint.shards import stored_dtype
from mixprec.checkpoint.target import (
    CompressedModule,
    blocks_folder,
    check_space,
    check_target,
)
from mixprec.core import artifacts, locks, publish
from mixprec.core.errors import UserError
from mixprec.numerics.formats import KEEP, Format
from mixprec.numerics.groupwise import dequantize
from mixprec.plan.schema import ModulePlan, Plan


def plan_of(checkpoint: Checkpoint) -> Plan:
    """The plan that a checkpoint's layouts amount to; embedding and head where they are packed."""
    lines = {
        module.address: ModulePlan(format=checkpoint.layouts[module.address].format)
        for module in checkpoint.inventory.matrices
        if module.layer or checkpoint.layouts[module.address].format is not KEEP
    }
    return Plan(model=str(checkpoint.path), method="rtn", modules=lines)


def convert(
    checkpoint: Checkpoint,
    format: CheckpointFormat,
    out: Path,
    advance: Callable[[int], object] = lambda _: None,
    base_model: str | None = None,
) -> None:
    """Write ``checkpoint`` as ``format`` into the folder ``out``, module by module.

    ``base_model``: id on the hub of the model that was quantized, for the card.

    Raises UserError for what would lose something: a format that can't hold a module, reordered columns, weights that
    a 16-bit format would round; and for a target that mixprec did not make.
    """
    out = Path(os.path.realpath(out))  # a link to a folder elsewhere stays
    verify(checkpoint.path)
    modelcard.base_model(checkpoint.path.name, checkpoint.path, base_model)
    if checkpoint.container == "gguf":
        raise UserError(
            f"{checkpoint.path}: blocks of llama.cpp's types are no codes and scales of another format; compress the "
            "original with the plan in this checkpoint's mixprec.json instead"
        )
    beyond = checkpoint.packing.notes if checkpoint.packing else ()
    if beyond:
        raise UserError(f"{checkpoint.path}: {beyond[0]}, and would be lost; no format written here has it")
    plan = plan_of(checkpoint)
    if not plan.changed:
        raise UserError(f"{checkpoint.path}: holds no packed modules: there is nothing to convert; compress it instead")
    check_target(out, checkpoint.path)
    _check_order(checkpoint)
    check_plan(format, plan, checkpoint.inventory, checkpoint.shapes)
    check_space(out, space(format, plan, checkpoint.inventory, checkpoint.shapes, checkpoint.source))
    work = blocks_folder(out)
    with locks.target(out, work):
        with publish.atomic_path(out) as folder, publish.atomic_path(work) as blocks:
            folder.mkdir()
            blocks.mkdir()
            files: list[Path] = []
            for module in checkpoint.inventory.planned(plan.modules):
                layout = checkpoint.layouts[module.address]
                if isinstance(layout.format, Format):
                    file = blocks / f"{len(files):06d}.safetensors"
                    artifacts.save_tensors(file, _converted(checkpoint, module.address, format, plan))
                    files.append(file)
                advance(1)
            made = Finish(checkpoint.source, files, folder, plan, checkpoint.inventory, checkpoint.shapes)
            format.finish(made)
            card = artifacts.provenance(
                source={"checkpoint": checkpoint.path.name, "format": checkpoint.container},
                plan=plan.model_dump(mode="json"),
                checkpoint={"format": format.name},
            )
            complete(made, format, modelcard.Told(base_model), card)
        publish.remove(work)


def _converted(checkpoint: Checkpoint, address: str, format: CheckpointFormat, plan: Plan) -> dict[str, Tensor]:
    module, dtype = checkpoint.inventory[address], stored_dtype(checkpoint.shapes)
    quantized, its_format = checkpoint.quantized(module), plan.formats[address]
    assert isinstance(its_format, Format)
    # Dense weights are what every runtime makes of the codes: rounded once to the model's type.
    restored = dequantize(quantized, its_format, dtype)
    return format.pack(CompressedModule(module.weight_name, its_format, quantized, restored), plan)


def _check_order(checkpoint: Checkpoint) -> None:
    for module in checkpoint.inventory.matrices:
        if checkpoint.order(module) is not None:
            raise UserError(
                f"{checkpoint.path}: {module.address}: its columns are reordered (desc_act), which no format written "
                "here holds; quantize again without it"
            )
