"""Checkpoints without dropped experts: the same tensors but for theirs, which those that stay move up to take.

Nothing is computed. Tensors with a row for each expert (stacks of experts, the router) lose rows; experts that are
tensors of their own are left out or get another number; config.json says how many are left.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from torch import Tensor
from transformers import PretrainedConfig

from mixprec.checkpoint.integrity import seal
from mixprec.checkpoint.quantization import CONFIG
from mixprec.checkpoint.target import write_index, write_shard, write_side_files
from mixprec.core import artifacts, publish
from mixprec.core.errors import UserError
from mixprec.core.progress import console
from mixprec.models import fewer
from mixprec.models.complete import is_computed
from mixprec.models.decoder import Decoder
from mixprec.models.labels import place_of
from mixprec.models.maps import names_of
from mixprec.models.source import Source, TensorInfo
from mixprec.models.tensors import read_shard
from mixprec.plan.dropping import Kept, kept, per_expert
from mixprec.plan.schema import Plan, without_dropped

_NUMBER: Final = re.compile(r"(?<=\.experts\.)\d+(?=\.)")


class Left(NamedTuple):
    """What is left of a plan, and of the model's map and configuration, without dropped experts."""

    plan: Plan
    inventory: Decoder
    config: PretrainedConfig


def left(plan: Plan, inventory: Decoder, config: PretrainedConfig) -> Left:
    """All three as they are where nothing is dropped. Raises UserError as ``fewer.with_experts``, and for a model that
    has other tensors of another shape then."""
    numbers = kept(plan.dropped, inventory)
    if not numbers:
        return Left(plan, inventory, config)
    count = len(next(iter(numbers.values())))
    made, smaller = fewer.with_experts(config, inventory, count)
    renamed = Renaming(inventory, numbers).shapes(inventory.shapes)
    for name in renamed.keys() | smaller.shapes.keys():
        if renamed.get(name) != smaller.shapes.get(name):
            raise UserError(
                f"drop: {name} depends on the number of experts in a way that isn't known here; keep the experts of "
                f"this model ({inventory.architecture})"
            )
    return Left(without_dropped(plan, inventory), smaller, made)


class Place(NamedTuple):
    """Where a tensor goes: its name there, and which of its rows, None for all."""

    name: str
    rows: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Renaming:
    """From the tensors of a model, with the map ``inventory``, to those of the one with the experts ``numbers``."""

    inventory: Decoder
    numbers: Kept

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rowed", per_expert(self.inventory))

    def of(self, name: str, stored: str | None = None) -> Place | None:
        """Where a tensor of the model goes, by its ``stored`` name; None where it is left out."""
        stored, place = stored or name, place_of(name)
        rowed: Mapping[str, int] = self.__dict__["_rowed"]
        if name in rowed:
            return Place(stored, self.numbers[rowed[name]])
        if place.layer is not None and place.layer > self.inventory.layers:
            return None  # a layer that transformers doesn't build, with experts of its own
        if place.layer is None or place.expert is None:
            return Place(stored)
        numbers = self.numbers[place.layer]
        if place.expert not in numbers:
            return None
        return Place(_NUMBER.sub(str(numbers.index(place.expert)), stored))

    def shapes(self, known: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Shapes of the model's tensors there."""
        found = {}
        for name, shape in known.items():
            place = self.of(name)
            if place is not None:
                found[place.name] = shape if place.rows is None else (len(place.rows), *shape[1:])
        return found

    def source(self, source: Source) -> Source:
        """What the headers of the files will say, tensors by the model's names, experts one by one."""
        found: dict[str, TensorInfo] = {}
        for name, info in source.tensors.items():
            place = self.of(name)
            if place is not None:
                shape = info.shape if place.rows is None else (len(place.rows), *info.shape[1:])
                found[place.name] = replace(info, shape=shape)
        return replace(source, tensors=found)


def write(source: Source, config: PretrainedConfig, inventory: Decoder, numbers: Kept, out: Path, stamp: str) -> None:
    """Write the checkpoint ``out``: ``source``, whose map is ``inventory``, with the experts ``numbers`` of each layer.

    ``stamp``: for its mixprec.json. One file's tensors are in memory at a time. Says what is left out besides.
    """
    renaming, names, written, passed = Renaming(inventory, numbers), names_of(config), {}, 0
    with publish.atomic_path(out) as folder:
        folder.mkdir()
        for shard in source.shards:
            tensors, metadata = read_shard(source.folder / shard)
            made: dict[str, Tensor] = {}
            for stored, tensor in tensors.items():
                own = stored if names is None else names.of(stored)
                layer = place_of(own).layer
                stack = names is not None and any(cut for _, cut, _ in names.cuts(own, tuple(tensor.shape)))
                place = Place(stored, numbers[layer]) if stack and layer else renaming.of(own, stored)
                if place is not None:
                    made[place.name] = tensor if place.rows is None else tensor[list(place.rows)]
                passed += place is None and own not in inventory.shapes and not is_computed(own)
            write_shard(folder / shard, made, metadata)
            written[shard] = {name: tensor.nbytes for name, tensor in made.items()}
        if source.sharded:
            write_index(folder, written)
        said: dict[str, Any] = artifacts.read_object(source.folder / CONFIG, finite=False)
        count = len(next(iter(numbers.values())))
        publish.write_json(folder / CONFIG, fewer.described(said, config, inventory, count))
        write_side_files(folder, source)
        seal(folder, {"stamp": stamp})
    if passed:
        console.print(f"{source.folder}: {passed} tensors that transformers doesn't read were left out", markup=False)
