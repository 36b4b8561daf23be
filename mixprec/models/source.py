"""Reading a safetensors checkpoint: one file, or shards with an index, of which one is held at a time."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mixprec.core import artifacts, headers, seals
from mixprec.core.errors import UserError
from mixprec.core.headers import BITS, Entry
from mixprec.models import fp8, kinds, modelfiles
from mixprec.models.gguf import parts
from mixprec.models.maps import decoder_of, names_of
from mixprec.models.modelfiles import INDEX, SINGLE
from mixprec.models.sizes import reader

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from mixprec.models.renames import Cut, Names

#: Types of weights that can be compressed, by their names in safetensors.
FLOATS: Final = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies, its shape, and its type as safetensors names it.

    ``name``: what its file calls it; "" as the model does. ``cut``: which part of what the file calls so it is; None:
    all of it. ``scale``: of weights in 8-bit floats, whose ``dtype`` is the one that they are read in.
    """

    shard: str
    shape: tuple[int, ...]
    dtype: str
    name: str = ""
    cut: Cut | None = None
    scale: fp8.Scale | None = None

    @property
    def bytes(self) -> int:
        """Its bytes without the header's."""
        return Entry(self.dtype, self.shape).bytes


@dataclass(frozen=True)
class Source:
    """A checkpoint folder: ``shards`` file names in order, ``tensors`` by their names in the model."""

    folder: Path
    shards: tuple[str, ...]
    tensors: Mapping[str, TensorInfo]

    @property
    def sharded(self) -> bool:
        """Whether an index says which file holds what."""
        return self.shards != (SINGLE,)

    def stored(self, name: str) -> str:
        """What the checkpoint's files call a tensor; a new one of a module gets a name beside its weight's."""
        if name in self.tensors:
            return self.tensors[name].name or name
        module, _, part = name.rpartition(".")
        weight = self.tensors.get(f"{module}.weight")
        if weight is None or weight.cut is not None or not weight.name:
            return name
        return f"{weight.name.removesuffix('.weight')}.{part}"

    def renamed(self, names: Names | None) -> Source:
        """The same with tensors by the names in a model, whose experts are one by one; None: these are the files'."""
        if names is None:
            return self
        tensors = {
            own: TensorInfo(info.shard, shape, info.dtype, stored, cut)
            for stored, info in self.tensors.items()
            for own, cut, shape in names.cuts(names.of(stored), info.shape)
        }
        return replace(self, tensors=tensors)

    def widened(self, block: tuple[int, int] | None) -> Source:
        """The same with weights in 8-bit floats as what they are read as, their scales put with them; ``block``: as
        fp8.block_of."""
        if block is None:
            return self
        tensors = dict(self.tensors)
        for name, info in self.tensors.items():
            module, _, part = name.rpartition(".")
            scales = tensors.get(f"{module}.{fp8.SCALE}")
            if part == "weight" and info.dtype == fp8.STORED and scales is not None:
                wanted = tuple(-(-size // each) for size, each in zip(info.shape, block, strict=True))
                if scales.shape != wanted:
                    raise UserError(
                        f"{self.folder / scales.shard}: {module}.{fp8.SCALE} has the shape {scales.shape}; blocks of "
                        f"{block[0]} x {block[1]} want {wanted}; fetch the checkpoint again"
                    )
                stored = scales.name or f"{module}.{fp8.SCALE}"
                where = fp8.Scale(self.folder / scales.shard, stored, block)
                tensors[name] = replace(info, dtype=fp8.READ, name=info.name or name, scale=where)
                del tensors[f"{module}.{fp8.SCALE}"]
        return replace(self, tensors=tensors)

    def side_files(self) -> list[Path]:
        """The files that go with the weights, in order of their names."""
        return modelfiles.side_files(self.folder)


def open_source(folder: Path) -> Source:
    """List a checkpoint's tensors from the headers of its files.

    Raises UserError for missing, broken or truncated files, types that are not known, and where the index and the files
    disagree.
    """
    if (folder / SINGLE).is_file():
        # Some tools, such as mlx-lm, write an index of one file too.
        if (folder / INDEX).is_file() and set(_read_index(folder / INDEX).values()) != {SINGLE}:
            raise UserError(f"{folder}: both {SINGLE} and {INDEX}, and runtimes differ in what they load; remove one")
        return Source(folder, (SINGLE,), _headers(folder / SINGLE))
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder}: neither {SINGLE} nor {INDEX}: {kinds.missing_weights(folder)}")
    index = _read_index(folder / INDEX)
    shards = tuple(sorted(set(index.values())))
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise UserError(f"{folder / INDEX}: names {', '.join(missing)}, which is not there; fetch it again")
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        held = _headers(folder / shard)
        for name in held.keys() & tensors.keys():
            raise UserError(
                f"{folder}: {name} is in {tensors[name].shard} and in {shard}; fetch the shards of one model"
            )
        tensors |= held
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
    with artifacts.open_tensors(path, header=True) as file:
        slices = {name: file.get_slice(name) for name in sorted(file.keys())}
        found = {
            name: TensorInfo(path.name, tuple(item.get_shape()), item.get_dtype()) for name, item in slices.items()
        }
    for name, info in found.items():
        if info.dtype not in BITS or info.dtype.startswith("F6_"):  # torch has no type of 6 bits to copy them with
            raise UserError(f"{path}: {name} is of the type {info.dtype}, which is not read here")
    return found


def tied(folder: Path, config: PretrainedConfig | Mapping[str, Any]) -> bool:
    """Whether the head is the embedding: by the tensors in ``folder``, by ``config`` where there are none.

    A head of its own that is stored is used, whatever config.json says (as transformers does); one that equals the
    embedding in every bit is the embedding.
    """
    said = bool(reader(config)("tie_word_embeddings"))
    try:
        file = parts.gguf_in(folder)
        if file is not None:
            return all(tensor.name != "output.weight" for tensor in parts.read(file).tensors)
        found = open_source(folder).tensors if said else {}
    except UserError:  # who reads the weights says what is wrong with them
        return said
    decoder, renaming = decoder_of(config), names_of(config)
    of_model = {name if renaming is None else renaming.of(name): name for name in found}
    names = tuple(of_model.get(name, name) for name in (decoder.embedding_weight, decoder.head_weight))
    one, other = (found.get(name) for name in names)
    if one is None or other is None:
        return said
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    states = tuple(seals.state(folder / info.shard) for info in (one, other))
    return _equal(folder, one.shard, other.shard, names, states)


@functools.lru_cache
def _equal(folder: Path, one: str, other: str, names: tuple[str, ...], _: tuple[seals.State, ...]) -> bool:
    """Embedding and head, by their names, in two shards, bit by bit."""
    embedding, head = (headers.stored(folder / shard, name) for shard, name in zip((one, other), names, strict=True))
    return embedding == head
