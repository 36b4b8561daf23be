"""Compress a checkpoint into another, one shard in memory at a time. For methods that need no data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from mixprec import artifacts, models, modules
from mixprec.checkpoint import dense
from mixprec.checkpoint.source import FLOATS, Source, fetch, open_source, read_shard
from mixprec.checkpoint.target import (
    CompressedModule,
    Pack,
    check_target,
    flush,
    write_index,
    write_shard,
    write_side_files,
)
from mixprec.compress.module import ModuleReport, OnModule, check_finite, compress_weight
from mixprec.errors import UserError
from mixprec.modules import Inventory, LinearModule
from mixprec.numerics.formats import Keep
from mixprec.plan.schema import Plan, check_modules


def compress(
    model_id: str,
    plan: Plan,
    out: Path,
    *,
    revision: str | None = None,
    device: str = "cpu",
    pack: Pack = dense.pack,
    on_module: OnModule | None = None,
) -> dict[str, ModuleReport]:
    """Write the checkpoint ``out``: ``model_id`` with its linear modules compressed as ``plan`` says.

    ``model_id``: hub id, folder or GGUF file. Modules that the plan keeps and all other tensors are copied
    byte for byte. The folder has the source's shards, configuration and tokenizer, and mixprec.json with plan
    and provenance; it appears when it is complete. Returns address -> report in the plan's order.

    Raises UserError for a plan that doesn't fit the checkpoint, missing or broken files, NaN or infinite
    weights, a target that mixprec did not make, and a full disk.
    """
    source = open_source(fetch(model_id, revision))
    inventory = modules.inventory(models.load_config(str(source.folder)))
    check_modules(plan, inventory, f"plan for {plan.model}")
    check_weights(source, inventory)
    check_target(out, source.folder)
    card = artifacts.provenance(
        source={"model": model_id, "revision": revision, "identity": models.identity(str(source.folder))},
        plan=plan.model_dump(mode="json"),
    )
    engine = _Engine({module.weight_name: module for module in inventory.linears}, plan, device, pack, on_module)
    with artifacts.atomic_path(out) as folder:
        folder.mkdir()
        written = {}
        for shard in source.shards:
            tensors, metadata = engine.compress_shard(source.folder / shard)
            write_shard(folder / shard, tensors, metadata)
            written[shard] = {name: tensor.nbytes for name, tensor in tensors.items()}
        if source.sharded:
            write_index(folder, written)
        write_side_files(folder, source, card)
        flush(folder)
    return {address: engine.reports[address] for address in plan.modules}


def check_weights(source: Source, inventory: Inventory) -> None:
    """Every linear module's weight is in the checkpoint, in its configured shape, in floating point.

    Raises UserError naming the tensor.
    """
    for module in inventory.linears:
        info = source.tensors.get(module.weight_name)
        if info is None:
            raise UserError(f"{source.folder}: has no {module.weight_name}, which config.json asks for")
        if info.shape != (module.out_features, module.in_features):
            raise UserError(
                f"{source.folder / info.shard}: {module.weight_name} has the shape {info.shape}, "
                f"config.json asks for {(module.out_features, module.in_features)}"
            )
        if info.dtype not in FLOATS:
            raise UserError(
                f"{source.folder / info.shard}: {module.weight_name} is stored as {info.dtype}; "
                f"weights must be {', '.join(FLOATS)} (is this checkpoint compressed already?)"
            )


class _Engine:
    """Compresses the planned tensors of one shard after the other and collects their reports."""

    def __init__(
        self,
        linears: Mapping[str, LinearModule],
        plan: Plan,
        device: str,
        pack: Pack,
        on_module: OnModule | None,
    ) -> None:
        self.reports: dict[str, ModuleReport] = {}
        self._linears, self._plan, self._formats = linears, plan, plan.formats
        self._device, self._pack, self._on_module = device, pack, on_module

    def compress_shard(self, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """The tensors that take the place of those in the file ``path``, and its metadata."""
        tensors, metadata = read_shard(path)
        done: dict[str, torch.Tensor] = {}
        for name in list(tensors):
            tensor = tensors.pop(name)  # so that the source's and the new values are not both held
            check_finite(f"{path}: {name}", tensor)
            if name in self._linears:
                done |= self._compress(f"{path}: {name}", tensor, self._linears[name])
            else:
                done[name] = tensor
        return done, metadata

    def _compress(self, where: str, weight: torch.Tensor, module: LinearModule) -> dict[str, torch.Tensor]:
        format = self._formats[module.address]
        if isinstance(format, Keep):
            stored, report = {module.weight_name: weight}, ModuleReport(str(format), 0.0)
        else:
            quantized, restored, report = compress_weight(where, weight.to(self._device), format, self._plan.method)
            packed = self._pack(CompressedModule(module.weight_name, format, quantized, restored))
            stored = {name: tensor.cpu() for name, tensor in packed.items()}
        self.reports[module.address] = report
        if self._on_module:
            self._on_module(module.address, report)
        return stored
