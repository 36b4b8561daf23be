"""The ``compressed-tensors`` format, pack-quantized: codes as a dense stream of bits along each row, scales in 16 bits.

2 to 8 bits, symmetric or not; groups have to divide the columns. One group of configuration for each format, by regular
expressions that match exactly its modules; kept modules are ignored. The library makes the configuration, so that it
is one that its readers know; from 0.19 on it packs 3 bits in 3 bits, older versions pad them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mixprec.checkpoint import holding, integers, packed, shards
from mixprec.checkpoint.base import CheckpointFormat, Held
from mixprec.checkpoint.packings.compressed_tensors import (
    EMBEDDING,
    PACKED,
    PACKING,
    SCALE,
    SHAPE,
    ZERO,
    padded_words,
)
from mixprec.checkpoint.said import Said
from mixprec.checkpoint.target import CompressedModule
from mixprec.models.decoder import Decoder, Linear
from mixprec.numerics import packing
from mixprec.numerics.formats import WHOLE_ROW, AnyFormat, Format
from mixprec.numerics.groupwise import Grid, Quantized
from mixprec.numerics.words import WORD, words
from mixprec.plan.patterns import regexes
from mixprec.plan.schema import Plan


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
    per = WORD // format.bits
    padded = padded_words(module.in_features, format.bits)
    stored = tensors[PACKED]
    if stored.shape[1] != padded or padded == words(module.in_features, format.bits):
        return tensors
    shifts = torch.arange(per, dtype=torch.int64, device=stored.device) * format.bits
    codes = ((stored.to(torch.int64).unsqueeze(-1) >> shifts) & (2**format.bits - 1)).to(torch.uint8)
    codes = codes.reshape(len(stored), -1)[:, : module.in_features]
    return {**tensors, PACKED: packing.pack(codes, format.bits)}


def quantization_config(plan: Plan, inventory: Decoder) -> dict[str, Any]:
    """What config.json says of the packed modules."""
    from compressed_tensors.quantization import QuantizationConfig  # it takes seconds to import

    formats, kept = integers.by_format(plan, inventory)
    head = [] if any(inventory.head in addresses for addresses in formats.values()) else [inventory.head]
    groups = {
        f"group_{number}": {
            "targets": _targets(addresses, inventory),
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
        "ignore": [*head, *(f"re:{pattern}" for pattern in regexes(kept))],
    }
    return dict(QuantizationConfig.model_validate(config).model_dump(mode="json", exclude_none=True))


def _targets(addresses: Sequence[str], inventory: Decoder) -> list[str]:
    """Patterns for linear modules. An embedding is meant by its class: vLLM's Llama builds it without a name."""
    linears = [address for address in addresses if address != inventory.embedding]
    embedding = [EMBEDDING] if len(linears) < len(addresses) else []
    return [*(f"re:{pattern}" for pattern in regexes(linears)), *embedding]


def _weights(format: Format) -> dict[str, Any]:
    whole = format.group_size == WHOLE_ROW
    where = {"strategy": "channel"} if whole else {"strategy": "group", "group_size": format.group_size}
    return {"num_bits": format.bits, "type": "int", "symmetric": format.symmetric, **where}


COMPRESSED_TENSORS = CheckpointFormat(
    name="compressed-tensors",
    problems=lambda plan, inventory, config: holding.compressed_tensors(plan, inventory),
    pack=_pack,
    read=_read,
    quantization_config=quantization_config,
    bytes=lambda plan, inventory, config: shards.predict(integers.tensors(PACKING), plan, inventory, config),
    finish=lambda job: shards.finish(job, dict.fromkeys(PACKING.places, quantization_config(job.plan, job.inventory))),
)
