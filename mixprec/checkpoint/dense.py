"""The ``dense`` format: the compressed values in the source's own type. Loads wherever the source loads."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mixprec.checkpoint import holding, shards
from mixprec.checkpoint.base import CheckpointFormat, Held
from mixprec.checkpoint.said import Said
from mixprec.checkpoint.target import CompressedModule
from mixprec.core.headers import Entry
from mixprec.models.decoder import Linear
from mixprec.numerics.formats import KEEP, AnyFormat
from mixprec.numerics.plain import Plain
from mixprec.plan.schema import Plan


def _pack(module: CompressedModule, plan: Plan) -> dict[str, Tensor]:
    return {module.weight_name: module.restored}


def _read(module: Linear, tensors: Mapping[str, Tensor], format: AnyFormat, by: Plan | Said | None) -> Held:
    return Held(Plain(tensors[module.weight_name]), KEEP)


def _tensors(module: Linear, format: AnyFormat, dtype: str) -> dict[str, Entry]:
    return {module.weight_name: Entry(dtype, (module.out_features, module.in_features))}


DENSE = CheckpointFormat(
    name="dense",
    problems=lambda plan, inventory, config: holding.dense(plan, inventory),
    pack=_pack,
    read=_read,
    quantization_config=lambda plan, inventory: None,
    bytes=lambda plan, inventory, config: shards.predict(_tensors, plan, inventory, config),
    finish=lambda job: shards.finish(job, {}),
)
