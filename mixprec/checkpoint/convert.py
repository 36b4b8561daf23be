"""One packed format into another without loss: codes and scales stay as they are, only their places change."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from mixprec.checkpoint import modelcard
from mixprec.checkpoint.base import CheckpointFormat, Finish, Held, check_plan, space
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
from mixprec.models.decoder import Linear
from mixprec.numerics import affine
from mixprec.numerics.affine import AffineQuantized
from mixprec.numerics.formats import KEEP, AffineFormat, Format
from mixprec.numerics.storage import AnyQuantized, dequantize
from mixprec.plan.schema import ModulePlan, Plan


def plan_of(checkpoint: Checkpoint) -> Plan:
    """The plan that a checkpoint's layouts amount to; embedding and head where they are packed."""
    lines = {
        module.address: ModulePlan(format=checkpoint.layouts[module.address].format)
        for module in checkpoint.inventory.matrices
        if module.layer or checkpoint.layouts[module.address].format is not KEEP
    }
    return Plan(model=str(checkpoint.path), method="rtn", modules=lines)


def plan_for(checkpoint: Checkpoint, format: CheckpointFormat) -> Plan:
    """``plan_of``, with grids of integers in the place of MLX's offsets where ``format`` does not hold these and they
    were made of zero points (numerics.affine.to_grid), which takes reading them."""
    plan, inventory = plan_of(checkpoint), checkpoint.inventory
    refused = format.problems(plan, inventory, checkpoint.shapes)
    grids = {a: _as_grid(checkpoint.held(inventory[a])).format for a in refused if a in plan.changed}
    lines = {a: ModulePlan(format=grids.get(a, line.format)) for a, line in plan.modules.items()}
    return Plan(model=plan.model, method=plan.method, modules=lines)


def _as_grid(held: Held) -> Held:
    """What is held as a grid of integers, where it is one."""
    if isinstance(held.quantized, AffineQuantized) and isinstance(held.format, AffineFormat):
        bits, size = held.format.bits, held.format.group_size
        grid = affine.to_grid(held.quantized, bits)
        return held if grid is None else Held(grid, Format(bits, size, symmetric=grid.grid.zeros is None))
    return held


def convert(
    checkpoint: Checkpoint,
    format: CheckpointFormat,
    out: Path,
    advance: Callable[[int], object] = lambda _: None,
    base_model: str | None = None,
) -> None:
    """Write ``checkpoint`` as ``format`` into the folder ``out``, module by module.

    ``base_model``: id on the hub of the model that was quantized, for the card.

    Raises UserError as ``check_rewrite`` does, and for weights that a 16-bit format would round.
    """
    check_rewrite(checkpoint, format, out, base_model)
    out = Path(os.path.realpath(out))  # a link to a folder elsewhere stays
    with locks.target(out, blocks_folder(out)):
        rewrite(checkpoint, format, out, advance=advance, base_model=base_model)


def check_rewrite(checkpoint: Checkpoint, format: CheckpointFormat, out: Path, base_model: str | None) -> None:
    """Raises UserError for what would lose something: a format that can't hold a module, reordered columns; where
    nothing is packed; and for a target that mixprec did not make."""
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
    if not plan_of(checkpoint).changed:
        raise UserError(f"{checkpoint.path}: holds no packed modules; compress the original instead")
    plan = plan_for(checkpoint, format)
    out = Path(os.path.realpath(out))
    check_target(out, checkpoint.path)
    _check_order(checkpoint)
    check_plan(format, plan, checkpoint.inventory, checkpoint.shapes)
    check_space(out, space(format, plan, checkpoint.inventory, checkpoint.shapes, checkpoint.source, solved=False))


def rewrite(
    checkpoint: Checkpoint,
    format: CheckpointFormat,
    out: Path,
    *,
    quantized: Mapping[str, AnyQuantized] = MappingProxyType({}),
    other: Mapping[str, Tensor] = MappingProxyType({}),
    advance: Callable[[int], object] = lambda _: None,
    base_model: str | None = None,
    **card: Any,
) -> None:
    """Write a checkpoint that ``check_rewrite`` let through; the caller is alone with ``out``, a real path.

    ``quantized``: name of a weight -> codes and grid in the place of its own. ``other``: tensors in the place of those
    of their names. ``card``: more for mixprec.json.
    """
    plan, work = plan_for(checkpoint, format), blocks_folder(out)
    with publish.atomic_path(out) as folder, publish.scratch(work / "packed") as blocks:
        folder.mkdir()
        files: list[Path] = []
        if other:
            files.append(blocks / "other.safetensors")
            artifacts.save_tensors(files[-1], other)
        for module in checkpoint.inventory.planned(plan.modules):
            if module.address in plan.changed:
                own = quantized.get(module.weight_name) or _quantized(checkpoint, module, plan)
                files.append(blocks / f"{len(files):06d}.safetensors")
                artifacts.save_tensors(files[-1], _packed(checkpoint, module, own, format, plan))
            advance(1)
        made = Finish(checkpoint.source, files, folder, plan, checkpoint.inventory, checkpoint.shapes)
        format.finish(made)
        told = artifacts.provenance(
            source={"checkpoint": checkpoint.path.name, "format": checkpoint.container},
            plan=plan.model_dump(mode="json"),
            checkpoint={"format": format.name},
            **card,
        )
        complete(made, format, modelcard.Told(base_model), told)
    publish.remove(work)


def _quantized(checkpoint: Checkpoint, module: Linear, plan: Plan) -> AnyQuantized:
    held = checkpoint.held(module)
    return held.quantized if held.format == plan.formats[module.address] else _as_grid(held).quantized


def _packed(
    checkpoint: Checkpoint, module: Linear, quantized: AnyQuantized, format: CheckpointFormat, plan: Plan
) -> dict[str, Tensor]:
    its_format = plan.formats[module.address]
    # Dense weights are what every runtime makes of the codes: rounded once to the model's type.
    restored = dequantize(quantized, its_format, stored_dtype(checkpoint.shapes))
    return format.pack(CompressedModule(module.weight_name, its_format, quantized, restored), plan)


def _check_order(checkpoint: Checkpoint) -> None:
    for module in checkpoint.inventory.matrices:
        if checkpoint.order(module) is not None:
            raise UserError(
                f"{checkpoint.path}: {module.address}: its columns are reordered (desc_act), which no format written "
                "here holds; quantize again without it"
            )
