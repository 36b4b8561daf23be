"""The ``compressed-tensors`` format, pack-quantized: codes as a dense stream of bits along each row, scales in 16 bits.

2 to 8 bits, symmetric or not; groups have to divide the columns. One group of configuration for each format, by regular
expressions that match exactly its modules; kept modules are ignored. The library makes the configuration, so that it
is one that its readers know; from 0.19 on it packs 3 bits in 3 bits, older versions pad them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Literal

import torch
from torch import Tensor

from mixprec.checkpoint import holding, integers, packed, shards
from mixprec.checkpoint.base import CheckpointFormat, Held, Packing
from mixprec.checkpoint.patterns import Matcher
from mixprec.checkpoint.said import Grid as SaidGrid
from mixprec.checkpoint.said import GroupSize, Nothing, Said, Strict
from mixprec.checkpoint.shards import Predicted
from mixprec.checkpoint.target import CompressedModule
from mixprec.models.decoder import Decoder, Linear
from mixprec.numerics import packing
from mixprec.numerics.formats import WHOLE_ROW, AnyFormat, Format
from mixprec.numerics.groupwise import Grid, Quantized, scale_dtype_of
from mixprec.plan.patterns import regexes
from mixprec.plan.schema import Plan

PACKED, SCALE, SHAPE, ZERO = "weight_packed", "weight_scale", "weight_shape", "weight_zero_point"
#: Which column is in which group, where their order is another one.
COLUMNS = "weight_g_idx"
#: Formats of the library that are read; in mixed ones each group names its own.
_FORMATS = frozenset({"pack-quantized", "mixed-precision"})
#: Classes that a linear module is of, in the order in which the library tries targets.
_CLASSES: Final = ("Linear", "Module")


class Weights(Strict):
    """How a group's weights are quantized."""

    num_bits: int
    type: Literal["int"] = "int"
    symmetric: bool = True
    strategy: Literal["group", "channel"]
    group_size: GroupSize | None = None
    dynamic: Literal[False] = False
    # Which columns belong to which group stands in the tensors (weight_g_idx), and is read there.
    actorder: Literal["group", "weight", "static", "dynamic", False] | None = None
    block_structure: Nothing = None
    scale_dtype: str | None = None
    zp_dtype: str | None = None
    observer: str | None = None
    observer_kwargs: dict[str, Any] | None = None

    @property
    def grid(self) -> SaidGrid:
        """Its numbers; groups of 0 where their size is missing."""
        return SaidGrid(self.num_bits, self.group_size or 0 if self.strategy == "group" else WHOLE_ROW, self.symmetric)


class Group(Strict):
    """One of ``config_groups``."""

    targets: list[str]
    weights: Weights | None = None
    input_activations: dict[str, Any] | None = None
    output_activations: dict[str, Any] | None = None
    format: Literal["pack-quantized"] | None = None


class Config(Said):
    """What config.json says of packed weights: keys as in compressed-tensors 0.19 (QuantizationConfig)."""

    quant_method: Literal["compressed-tensors"]
    format: Literal["pack-quantized", "mixed-precision"]
    config_groups: dict[str, Group]
    # Before 0.9 packed weights were called frozen: both say that the codes are final.
    quantization_status: Literal["compressed", "frozen"] = "compressed"
    ignore: list[str] | None = None
    kv_cache_scheme: dict[str, Any] | None = None
    transform_config: Nothing = None
    sparsity_config: Nothing = None
    global_compression_ratio: float | None = None
    version: str | None = None

    @classmethod
    def readable(cls, said: Mapping[str, Any]) -> bool:
        """Whether the formats that it names, for all groups and for single ones, are those of packed weights."""
        groups = said.get("config_groups")
        each = [group for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []
        return {str(named["format"]) for named in (said, *each) if named.get("format") is not None} <= _FORMATS

    def grid(self, address: str, patterns: Matcher) -> SaidGrid | None:
        """What is said of a module; None where it is not quantized."""
        if target(self.ignore or (), address, patterns) is not None:
            return None
        weights = {each: group.weights for group in self.config_groups.values() for each in group.targets}
        chosen = weights.get(target(weights, address, patterns) or "")
        return None if chosen is None else chosen.grid

    @property
    def notes(self) -> tuple[str, ...]:
        """What runtimes quantize besides weights."""
        groups = self.config_groups.values()
        said = {
            "what enters linears": any(group.input_activations for group in groups),
            "what linears put out": any(group.output_activations for group in groups),
            "the cache of keys and values": bool(self.kv_cache_scheme),
        }
        return tuple(
            f"runtimes also quantize {what}; that is not simulated here: weights alone are read and measured"
            for what, asked in said.items()
            if asked
        )


def target(targets: Collection[str], address: str, patterns: Matcher) -> str | None:
    """Of ``targets`` that mean the linear module ``address`` the one that compressed-tensors takes (match_targets): a
    name before a pattern before a class. None where there is none."""
    if address in targets:
        return address
    for each in sorted(targets):
        if each.startswith("re:") and patterns.match(each.removeprefix("re:"), address):
            return each
    return next((name for name in _CLASSES if name in targets), None)


def pack_codes(quantized: Quantized, format: Format) -> dict[str, Tensor]:
    """The tensors that hold codes and grid, by their names within the module.

    Codes and zero points are written as unsigned numbers, those of a symmetric grid shifted by 2^(bits - 1).
    """
    codes, grid = quantized
    half = 0 if grid.zeros is not None else 2 ** (format.bits - 1)
    tensors = {
        PACKED: packing.pack((codes.to(torch.int16) + half).to(torch.uint8), format.bits),
        SCALE: grid.scales,
        SHAPE: torch.tensor(codes.shape),
    }
    if grid.zeros is not None:
        tensors[ZERO] = packing.pack(grid.zeros.T, format.bits).T.contiguous()
    return tensors


def unpack_codes(tensors: Mapping[str, Tensor], format: Format) -> Quantized:
    """The inverse of ``pack_codes``."""
    rows, columns = tensors[SHAPE].tolist()
    codes = packing.unpack(tensors[PACKED], format.bits, columns)
    if format.symmetric:
        half = 2 ** (format.bits - 1)
        return Quantized((codes.to(torch.int16) - half).to(torch.int8), Grid(tensors[SCALE], None))
    zeros = packing.unpack(tensors[ZERO].T, format.bits, rows).T.contiguous()
    return Quantized(codes, Grid(tensors[SCALE], zeros))


def _pack(module: CompressedModule, plan: Plan) -> dict[str, Tensor]:
    address = module.weight_name.removesuffix(".weight")
    return {f"{address}.{name}": tensor for name, tensor in pack_codes(*packed.codes_of(module)).items()}


def _read(module: Linear, tensors: Mapping[str, Tensor], format: AnyFormat, by: Plan | Said | None) -> Held:
    grid = integers.grid(format)
    return Held(unpack_codes(_unpadded(packed.local(module.address, tensors), grid, module), grid), grid)


def _unpadded(tensors: Mapping[str, Tensor], format: Format, module: Linear) -> Mapping[str, Tensor]:
    """Words as the library writes them from 0.19 on: before, no code lay across two, 10 of 3 bits in one."""
    per = packing.WORD // format.bits
    padded = _padded_words(module.in_features, format.bits)
    words = tensors[PACKED]
    if words.shape[1] != padded or padded == packing.words(module.in_features, format.bits):
        return tensors
    shifts = torch.arange(per, dtype=torch.int64, device=words.device) * format.bits
    codes = ((words.to(torch.int64).unsqueeze(-1) >> shifts) & (2**format.bits - 1)).to(torch.uint8)
    codes = codes.reshape(len(words), -1)[:, : module.in_features]
    return {**tensors, PACKED: packing.pack(codes, format.bits)}


def _padded_words(columns: int, bits: int) -> int:
    """Words of a row in which no code lies across two."""
    return -(-columns // (packing.WORD // bits))


def _shapes(module: Linear, format: Format) -> dict[str, Sequence[tuple[int, ...]]]:
    usual = {name: [each.shape] for name, each in _inside(module, format, torch.bfloat16).items()}
    padded = (module.out_features, _padded_words(module.in_features, format.bits))
    return {**usual, PACKED: [*usual[PACKED], padded], COLUMNS: [(module.in_features,)]}


def quantization_config(plan: Plan, inventory: Decoder) -> dict[str, Any]:
    """What config.json says of the packed modules."""
    from compressed_tensors.quantization import QuantizationConfig  # it takes seconds to import

    formats, kept = integers.by_format(plan, inventory)
    groups = {
        f"group_{number}": {
            "targets": [f"re:{pattern}" for pattern in regexes(addresses)],
            "weights": _weights(format),
            "format": "pack-quantized",
        }
        for number, (format, addresses) in enumerate(formats.items())
    }
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [inventory.head, *(f"re:{pattern}" for pattern in regexes(kept))],
    }
    return dict(QuantizationConfig.model_validate(config).model_dump(mode="json", exclude_none=True))


def _weights(format: Format) -> dict[str, Any]:
    whole = format.group_size == WHOLE_ROW
    where = {"strategy": "channel"} if whole else {"strategy": "group", "group_size": format.group_size}
    return {"num_bits": format.bits, "type": "int", "symmetric": format.symmetric, **where}


def _tensors(module: Linear, format: AnyFormat, dtype: torch.dtype) -> dict[str, Predicted]:
    inside = _inside(module, integers.grid(format), dtype)
    return {f"{module.address}.{name}": predicted for name, predicted in inside.items()}


def _inside(module: Linear, format: Format, dtype: torch.dtype) -> dict[str, Predicted]:
    """A packed module's tensors by their names within it."""
    rows, columns = module.out_features, module.in_features
    groups = format.groups(columns)
    found = {
        PACKED: Predicted(torch.int32, (rows, packing.words(columns, format.bits))),
        SCALE: Predicted(scale_dtype_of(dtype), (rows, groups)),
        SHAPE: Predicted(torch.int64, (2,)),
    }
    if not format.symmetric:
        found[ZERO] = Predicted(torch.int32, (packing.words(rows, format.bits), groups))
    return found


COMPRESSED_TENSORS = CheckpointFormat(
    name="compressed-tensors",
    problems=lambda plan, inventory, config: holding.compressed_tensors(plan, inventory),
    pack=_pack,
    read=_read,
    quantization_config=quantization_config,
    bytes=lambda plan, inventory, config: shards.predict(_tensors, plan, inventory, config),
    finish=lambda job: shards.finish(job, quantization_config(job.plan, job.inventory)),
    packing=Packing(
        mark=PACKED,
        parts=frozenset({PACKED, SCALE, SHAPE, ZERO, COLUMNS}),
        columns=COLUMNS,
        said=Config,
        shapes=_shapes,
    ),
)
