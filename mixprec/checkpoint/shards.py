"""Checkpoints in the source's own shards: what the blocks' files hold takes the place of the source's tensors.

One shard at a time is in memory. Their sizes are known beforehand from names, types and shapes alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from transformers import PretrainedConfig

from mixprec import artifacts
from mixprec.checkpoint.base import Finish
from mixprec.checkpoint.source import check_finite, read_shard
from mixprec.checkpoint.target import write_index, write_shard
from mixprec.modules import Inventory, LinearModule
from mixprec.numerics.formats import AnyFormat, Keep
from mixprec.plan.schema import Plan

CONFIG = "config.json"
_NAMES = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int32: "I32",
    torch.int64: "I64",
}


class Predicted(NamedTuple):
    """Type and shape that a tensor will have on disk."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its bytes without the header's."""
        return self.dtype.itemsize * int(torch.Size(self.shape).numel())


#: (module, its format, the type of the source's weight) -> the tensors that hold it, by name.
Tensors = Callable[[LinearModule, AnyFormat, torch.dtype], dict[str, Predicted]]


def stored_dtype(config: PretrainedConfig) -> torch.dtype:
    """The type of a checkpoint's weights as its configuration has it; 16 bits where it doesn't say."""
    return config.dtype if isinstance(config.dtype, torch.dtype) else torch.bfloat16


def predict(tensors: Tensors, plan: Plan, inventory: Inventory, config: PretrainedConfig) -> int:
    """Bytes of a checkpoint's safetensors files, as if there were one."""
    stored = stored_dtype(config)
    listed: dict[str, Predicted] = {name: Predicted(stored, (size,)) for name, size in inventory.other.items()}
    for module in inventory.linears:
        format = plan.formats[module.address]
        if isinstance(format, Keep):
            listed[module.weight_name] = Predicted(stored, (module.out_features, module.in_features))
        else:
            listed |= tensors(module, format, stored)
    return file_bytes(listed)


def file_bytes(tensors: Mapping[str, Predicted]) -> int:
    """Bytes of a safetensors file: eight for the header's length, the header filled up to eight, the tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, (dtype, shape) in tensors.items():
        end = start + Predicted(dtype, shape).bytes
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + length + -length % 8 + start


def finish(job: Finish, quantization_config: Mapping[str, Any] | None) -> None:
    """Write shards, index and config.json; configurations get ``quantization_config`` where there is one."""
    replaced = _replaced(job)
    written = {}
    for shard in job.source.shards:
        tensors, metadata = read_shard(job.source.folder / shard)
        for name in tensors.keys() - replaced.keys():
            check_finite(f"{job.source.folder / shard}: {name}", tensors[name])  # blocks behind the last that changes
        for old in [name for name in tensors if name in replaced]:
            del tensors[old]
            for name, file in replaced[old]:
                with artifacts.open_tensors(file) as opened:
                    tensors[name] = opened.get_tensor(name)
        write_shard(job.folder / shard, tensors, metadata)
        written[shard] = {name: tensor.nbytes for name, tensor in tensors.items()}
    if job.source.sharded:
        write_index(job.folder, written)
    write_config(job, quantization_config)


def write_config(job: Finish, quantization_config: Mapping[str, Any] | None) -> None:
    """The source's config.json, byte for byte where it gets no ``quantization_config``."""
    text = artifacts.read_text(job.source.folder / CONFIG)
    config = json.loads(text)
    if quantization_config is not None or "quantization_config" in config:
        config.pop("quantization_config", None)
        config |= {"quantization_config": quantization_config} if quantization_config is not None else {}
        text = json.dumps(config, indent=2) + "\n"
    (job.folder / CONFIG).write_text(text, encoding="utf-8")


def _replaced(job: Finish) -> dict[str, list[tuple[str, Path]]]:
    """Tensor of the source -> the tensors that take its place, maybe none, and the blocks' files that hold them."""
    members: dict[str, list[str]] = {}
    for name in job.source.tensors:
        if not name.endswith(".bias"):
            members.setdefault(name.rpartition(".")[0], []).append(name)
    found: dict[str, list[tuple[str, Path]]] = {}
    for file in job.blocks:
        for name in _names(file):
            # Tensors of names of their own, such as packed codes, take the place of all that their module had.
            olds = [name] if name in job.source.tensors else members[name.rpartition(".")[0]]
            found.setdefault(olds[0], []).append((name, file))
            for old in olds[1:]:
                found.setdefault(old, [])
    return found


def _names(file: Path) -> Iterable[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())
