"""Reading a safetensors checkpoint: one file, or shards with an index, of which one is held at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import PretrainedConfig

from mixprec import artifacts, modelfiles, models
from mixprec.errors import UserError
from mixprec.modelfiles import INDEX, SIDE_FILES

SINGLE = "model.safetensors"
_WEIGHTS = ("model.safetensors", "model-*.safetensors")

#: Types of weights that can be compressed, by their names in safetensors.
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_ITEMSIZE = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies, its shape, and its type as safetensors names it."""

    shard: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """Its bytes without the header's."""
        return math.prod(self.shape) * _ITEMSIZE.get(self.dtype, 1)


@dataclass(frozen=True)
class Source:
    """A checkpoint folder: ``shards`` file names in order, ``tensors`` by name."""

    folder: Path
    shards: tuple[str, ...]
    tensors: Mapping[str, TensorInfo]

    @property
    def sharded(self) -> bool:
        """Whether an index says which file holds what."""
        return self.shards != (SINGLE,)

    def side_files(self) -> list[Path]:
        """The files that go with the weights, in order of their names."""
        return modelfiles.side_files(self.folder)


def fetch(model_id: str, revision: str | None = None) -> Path:
    """The folder with the checkpoint of ``model_id``; a hub id is downloaded into the hub's cache.

    Raises UserError for an unknown model, and for a hub id that is not cached where there is no network.
    """
    where = models.resolve(model_id)
    if Path(where).is_dir():
        return Path(where)
    try:
        return Path(snapshot_download(where, revision=revision, allow_patterns=[*_WEIGHTS, *SIDE_FILES]))
    except Exception as problem:  # the hub raises many kinds; all mean that there is no checkpoint
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise UserError(
            f"model.id: {model_id}: can't be fetched from the hub ({reason}); "
            "check the name and the network, or give a local folder"
        ) from None


def at_hand(config: PretrainedConfig) -> Path | None:
    """The folder of the checkpoint that ``config`` was read from, if it lies on this machine; downloads nothing."""
    try:
        where = models.resolve(config.name_or_path)
        if Path(where).is_dir():
            return Path(where)
        return Path(snapshot_download(where, revision=getattr(config, "_commit_hash", None), local_files_only=True))
    except Exception:  # the hub raises many kinds; all mean that there is none
        return None


def open_source(folder: Path) -> Source:
    """List a checkpoint's tensors from the headers of its files.

    Raises UserError for missing, broken or truncated files, and where the index and the files disagree.
    """
    if (folder / SINGLE).is_file():
        return Source(folder, (SINGLE,), _headers(folder / SINGLE))
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder}: neither {SINGLE} nor {INDEX}; only safetensors checkpoints are read")
    index = _read_index(folder / INDEX)
    shards = tuple(sorted(set(index.values())))
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise UserError(f"{folder / INDEX}: names {', '.join(missing)}, which is not there; fetch it again")
    tensors = {name: info for shard in shards for name, info in _headers(folder / shard).items()}
    for name, shard in index.items():
        if name not in tensors or tensors[name].shard != shard:
            raise UserError(f"{folder / INDEX}: {name} should be in {shard}, which doesn't hold it; fetch both again")
    return Source(folder, shards, tensors)


def _read_index(path: Path) -> dict[str, str]:
    data = artifacts.read_json(path)
    index = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(index, dict) or not index:
        raise UserError(f"{path}: weight_map is missing or empty; it is no index of a checkpoint")
    for name, shard in index.items():
        # A path would be written outside the new checkpoint.
        if not isinstance(shard, str) or not shard or Path(shard).name != shard:
            raise UserError(f"{path}: weight_map: {name}: {shard!r} is no plain file name")
    return index


def _headers(path: Path) -> dict[str, TensorInfo]:
    with artifacts.open_tensors(path) as file:
        slices = {name: file.get_slice(name) for name in sorted(file.keys())}
        return {name: TensorInfo(path.name, tuple(item.get_shape()), item.get_dtype()) for name, item in slices.items()}


def check_finite(where: str, tensor: torch.Tensor) -> None:
    """Raises UserError naming ``where`` for NaN or infinite values; passes integers."""
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise UserError(f"{where}: holds NaN or infinite values; the checkpoint is broken, fetch it again")


def read_shard(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of one file, by name, and its metadata.

    Raises UserError where it is missing or broken.
    """
    with artifacts.open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in sorted(file.keys())}, dict(file.metadata() or {})
