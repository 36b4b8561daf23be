"""Checkpoints in the source's own shards: what the blocks' files hold takes the place of the source's tensors.

One shard at a time is in memory. Their sizes are known beforehand from names, types and shapes alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PretrainedConfig

from mixprec.checkpoint.base import Finish
from mixprec.checkpoint.fewer import Renaming, left
from mixprec.checkpoint.quantization import KEYS
from mixprec.checkpoint.target import write_index, write_shard
from mixprec.core import artifacts, headers
from mixprec.core.errors import UserError
from mixprec.models import fp8
from mixprec.models.decoder import Decoder, Linear
from mixprec.models.locate import at_hand
from mixprec.models.maps import names_of
from mixprec.models.modelfiles import SINGLE
from mixprec.models.source import FLOATS, Source, TensorInfo, open_source
from mixprec.models.tensors import check_finite, read_shard, slot, widened
from mixprec.numerics.formats import AnyFormat, Keep
from mixprec.plan.dropping import kept
from mixprec.plan.schema import Plan

CONFIG = "config.json"
#: What transformers writes into a header.
_METADATA = {"format": "pt"}


#: (module, its format, the type of the source's weight) -> the tensors that hold it, by name.
Tensors = Callable[[Linear, AnyFormat, str], dict[str, headers.Entry]]


def stored_dtype(config: PretrainedConfig) -> torch.dtype:
    """The type of a checkpoint's weights as its configuration has it; 16 bits where it doesn't say."""
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.bfloat16


def predict(tensors: Tensors, plan: Plan, inventory: Decoder, config: PretrainedConfig) -> int:
    """Bytes of a checkpoint's safetensors files. Exact where the source lies on this machine; else as if there were
    one file, all of it in the configuration's type."""
    source, stored = _source(config, inventory), stored_dtype(config)
    whole, numbers = inventory, kept(plan.dropped, inventory)
    plan, inventory, config = left(plan, inventory, config)
    if source is not None and numbers:
        source = Renaming(whole, numbers).source(source)
    before = source.tensors if source else _expected(inventory, stored)
    after, members = dict(before), _members(before)
    for module in inventory.planned(plan.modules):
        format = plan.formats[module.address]
        if isinstance(format, Keep):
            continue
        shard = before[members[module.address][0]].shard
        weight = before.get(module.weight_name)  # a packed source has none
        dtype = weight.dtype if weight and weight.dtype in FLOATS else headers.type_name(stored)
        for old in members[module.address]:
            del after[old]
        held_by = tensors(module, format, dtype)
        after |= {name: TensorInfo(shard, made.shape, made.dtype) for name, made in held_by.items()}
    for name in _copies(plan, inventory, before):
        del after[name]
    shards: dict[str, dict[str, TensorInfo]] = {}
    for name, info in after.items():
        shards.setdefault(info.shard, {})[name] = info
    return sum(_file_bytes(held, _metadata(source, shard)) for shard, held in shards.items())


def _source(config: PretrainedConfig, inventory: Decoder) -> Source | None:
    """The model's files, if they are here and whole; who reads them says what is wrong with others."""
    folder = at_hand(config)
    try:
        found = _opened(folder, config) if folder else None
    except UserError:
        return None
    held = _members(found.tensors) if found else {}
    return found if all(module.address in held for module in inventory.linears) else None


def _opened(folder: Path, config: PretrainedConfig) -> Source:
    said = artifacts.read_object(folder / CONFIG, finite=False) if (folder / CONFIG).is_file() else {}
    return open_source(folder).renamed(names_of(config)).widened(fp8.block_of(said))


def _expected(inventory: Decoder, stored: torch.dtype) -> dict[str, TensorInfo]:
    """A model's tensors by its configuration."""
    shapes: dict[str, tuple[int, ...]] = {name: (size,) for name, size in inventory.other.items()}
    shapes |= {module.weight_name: (module.out_features, module.in_features) for module in inventory.linears}
    return {name: TensorInfo(SINGLE, shape, headers.type_name(stored)) for name, shape in shapes.items()}


def _metadata(source: Source | None, shard: str) -> Mapping[str, str]:
    if source is None:
        return _METADATA
    with artifacts.open_tensors(source.folder / shard) as opened:
        return dict(opened.metadata() or {})


def _file_bytes(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> int:
    """Bytes of a safetensors file."""
    order = list(headers.BITS)
    ordered = sorted(tensors.items(), key=lambda item: (order.index(item[1].dtype), item[0]))
    return headers.made({name: headers.Entry(info.dtype, info.shape) for name, info in ordered}, metadata).size


def _copies(plan: Plan, inventory: Decoder, tensors: Mapping[str, Any]) -> list[str]:
    """Tensors of a source that are left out: of an embedding that changes and that some write a second time, as the
    head."""
    changes = inventory.tied and inventory.embedding in plan.changed
    return [inventory.head_weight] if changes and inventory.head_weight in tensors else []


def finish(job: Finish, said: Mapping[str, Any]) -> None:
    """Write shards, index and config.json, which gets the keys of ``said``: how weights are quantized."""
    replaced = _replaced(job)
    written = {}
    for shard in job.source.shards:
        stored, metadata = read_shard(job.source.folder / shard)
        tensors: dict[str, Tensor] = {}
        for name, parts in _parts(job.source, shard).items():
            tensors |= _written(job, stored.pop(name), name, parts, replaced)
        write_shard(job.folder / shard, tensors, metadata)
        written[shard] = {name: tensor.nbytes for name, tensor in tensors.items()}
    if job.source.sharded:
        write_index(job.folder, written)
    write_config(job, said)


def _parts(source: Source, shard: str) -> dict[str, list[str]]:
    """What a shard's file calls its tensors -> the model's tensors in each."""
    found: dict[str, list[str]] = {}
    for name, info in source.tensors.items():
        if info.shard == shard:
            found.setdefault(info.name or name, []).append(name)
    return found


def _written(
    job: Finish, tensor: Tensor, stored: str, parts: Sequence[str], replaced: Mapping[str, list[tuple[str, Path]]]
) -> dict[str, Tensor]:
    """What the new checkpoint has in the place of a stored tensor: itself, where nothing in it changed; a stack with
    new slices, where all of them are still weights; else each part by itself."""
    source = job.source.tensors
    new = {part: {name: _load(file, name) for name, file in replaced[part]} for part in parts if part in replaced}
    if len(new) < len(parts):
        check_finite(f"{job.source.folder / source[parts[0]].shard}: {stored}", tensor)  # what no walk has looked at
    if not new:
        return {stored: tensor if source[parts[0]].scale is None else widened(tensor, source[parts[0]])}
    if source[parts[0]].cut is None:
        return {job.source.stored(name): made for part in parts for name, made in new[part].items()}
    if all(made.keys() == {part} for part, made in new.items()):
        whole = tensor.clone()
        for part, made in new.items():
            slot(whole, source[part]).copy_(made[part])
        return {stored: whole}
    return {
        name: made
        for part in parts
        for name, made in (new[part] if part in new else {part: slot(tensor, source[part]).clone()}).items()
    }


def _load(file: Path, name: str) -> Tensor:
    with artifacts.open_tensors(file) as opened:
        found: Tensor = opened.get_tensor(name)
        return found


def write_config(job: Finish, said: Mapping[str, Any]) -> None:
    """The source's config.json, byte for byte where nothing in it changes."""
    made = described(job, said)
    same = made == artifacts.read_object(job.source.folder / CONFIG, finite=False)
    text = artifacts.read_text(job.source.folder / CONFIG) if same else json.dumps(made, indent=2) + "\n"
    (job.folder / CONFIG).write_text(text, encoding="utf-8")


def described(job: Finish, said: Mapping[str, Any]) -> dict[str, Any]:
    """The source's config.json as the new checkpoint has it: with what is ``said`` of its quantization, and nothing of
    the source's, and with the head tied to the embedding where the tensors are."""
    made = artifacts.read_object(job.source.folder / CONFIG, finite=False)
    for key in KEYS:
        made.pop(key, None)
    made |= said
    tied = bool(getattr(job.config, "tie_word_embeddings", False))  # some multimodal models have no such key
    if made.get("tie_word_embeddings", getattr(type(job.config)(), "tie_word_embeddings", False)) != tied:
        made["tie_word_embeddings"] = tied
    return made


def _replaced(job: Finish) -> dict[str, list[tuple[str, Path]]]:
    """Tensor of the source -> the tensors that take its place, maybe none, and the blocks' files that hold them."""
    members, changed = _members(job.source.tensors), set(job.plan.changed)
    found: dict[str, list[tuple[str, Path]]] = {
        name: [] for name in _copies(job.plan, job.inventory, job.source.tensors)
    }
    for file in job.blocks:
        for name in _names(file):
            # What holds a module's weight now takes the place of all that held it before.
            module, _, part = name.rpartition(".")
            itself = name in job.source.tensors and (module not in changed or part == "bias")
            olds = [name] if itself else members[module]
            found.setdefault(olds[0], []).append((name, file))
            for old in olds[1:]:
                found.setdefault(old, [])
    return found


def _members(tensors: Iterable[str]) -> dict[str, list[str]]:
    """Module -> the tensors that hold its weight."""
    members: dict[str, list[str]] = {}
    for name in tensors:
        if not name.endswith(".bias"):
            members.setdefault(name.rpartition(".")[0], []).append(name)
    return members


def _names(file: Path) -> Iterable[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())
