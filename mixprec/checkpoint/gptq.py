"""The ``gptq`` format, as GPTQModel and vLLM read it: codes packed down the columns, scales and zero points per group.

2, 3, 4 and 8 bits; 32 codes in 3 bits fill 3 words. The first layout ("gptq") stores zero points less one, so that zero
itself is none of them and readers that add one without a mask break its neighbours: plans with asymmetric formats are
written in the second layout ("gptq_v2"), which stores them as they are. Modules whose format is not the most frequent
one stand under ``dynamic``; names of groups that vLLM fuses are there beside their modules'. Columns are never
reordered (our act order sorts groups and columns within them for the solve alone), so g_idx just counts groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mixprec.checkpoint import holding, integers, packed, shards
from mixprec.checkpoint.base import CheckpointFormat, Held
from mixprec.checkpoint.packings.gptq import CODES, INDEX, PACKING, SCALES, ZEROS, Config
from mixprec.checkpoint.said import Said
from mixprec.checkpoint.target import CompressedModule
from mixprec.core.errors import UserError
from mixprec.core.version import VERSION
from mixprec.models.decoder import Decoder, Linear
from mixprec.numerics import packing
from mixprec.numerics.formats import AnyFormat, Format
from mixprec.numerics.groupwise import Grid, Quantized
from mixprec.plan.patterns import regexes
from mixprec.plan.schema import Plan


def pack_codes(quantized: Quantized, format: Format, *, shifted: bool) -> dict[str, Tensor]:
    """The tensors that hold codes and grid, by their names within the module.

    ``shifted``: zero points are stored less one.
    """
    codes, grid = quantized
    columns, half = codes.shape[1], 2 ** (format.bits - 1)
    unsigned = codes if grid.zeros is not None else (codes.to(torch.int16) + half).to(torch.uint8)
    zeros = grid.zeros if grid.zeros is not None else torch.full_like(grid.scales, half, dtype=torch.uint8)
    zeros = zeros - 1 if shifted else zeros
    return {
        CODES: packing.pack(unsigned, format.bits).T.contiguous(),
        ZEROS: packing.pack(zeros.T, format.bits),
        SCALES: grid.scales.T.contiguous(),
        INDEX: (torch.arange(columns) // format.width(columns)).to(torch.int32),
    }


def unpack_codes(tensors: Mapping[str, Tensor], format: Format, columns: int, *, shifted: bool) -> Quantized:
    """The inverse of ``pack_codes``, for a weight of so many columns; their groups are taken to lie in a row."""
    scales = tensors[SCALES].T.contiguous()
    codes = packing.unpack(tensors[CODES].T, format.bits, columns)
    if format.symmetric:
        half = 2 ** (format.bits - 1)
        return Quantized((codes.to(torch.int16) - half).to(torch.int8), Grid(scales, None))
    zeros = packing.unpack(tensors[ZEROS], format.bits, len(scales)).T.contiguous()
    return Quantized(codes, Grid(scales, zeros + 1 if shifted else zeros))


def _pack(module: CompressedModule, plan: Plan) -> dict[str, Tensor]:
    address = module.weight_name.removesuffix(".weight")
    quantized, format = packed.codes_of(module)
    return {f"{address}.{name}": t for name, t in pack_codes(quantized, format, shifted=_shifted(plan)).items()}


def _read(module: Linear, tensors: Mapping[str, Tensor], format: AnyFormat, by: Plan | Said | None) -> Held:
    grid, local = integers.grid(format), packed.local(module.address, tensors)
    shifted = by.shifted if isinstance(by, Config) else isinstance(by, Plan) and _shifted(by)
    if grid.symmetric:
        # Some readers add the zero points of a symmetric grid, others pass over them: they have to be one.
        zeros = packing.unpack(local[ZEROS], grid.bits, module.out_features)
        if (zeros != 2 ** (grid.bits - 1) - shifted).any():
            raise UserError(f"{module.address}.{ZEROS} are not those of a symmetric grid")
    return Held(unpack_codes(local, grid, module.in_features, shifted=shifted), grid)


def _shifted(plan: Plan) -> bool:
    """Whether the first layout does, which knows no zero point 0."""
    return all(format.symmetric for format in plan.formats.values() if isinstance(format, Format))


def quantization_config(plan: Plan, inventory: Decoder) -> dict[str, Any]:
    """What config.json says of the packed modules."""
    formats, kept = integers.by_format(plan, inventory)
    base = next(iter(formats), Format(4, 128))  # nothing is packed: what is said must still parse
    dynamic: dict[str, dict[str, Any]] = {}
    for format, addresses in formats.items():
        if format != base:
            dynamic |= {f"+:{pattern}": _grid(format) for pattern in regexes(_with_fused(addresses, inventory))}
    dynamic |= {f"-:{pattern}": {} for pattern in regexes(_with_fused(kept, inventory))}
    packed = [address for addresses in formats.values() for address in addresses]
    # transformers knows no ``dynamic``: without the list it would take kept modules for packed ones.
    listed = {"modules_in_block_to_quantize": [packed]} if kept and packed else {}
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq" if _shifted(plan) else "gptq_v2",
        **_grid(base),
        "desc_act": False,
        "lm_head": inventory.head in packed,
        "pack_dtype": "int32",
        "dynamic": dynamic,
        **listed,
        "meta": {"quantizer": [f"mixprec:{VERSION}"]},
    }


def _grid(format: Format) -> dict[str, Any]:
    return {"bits": format.bits, "group_size": format.group_size, "sym": format.symmetric}


def _with_fused(addresses: Sequence[str], inventory: Decoder) -> list[str]:
    """The names, and those that vLLM gives to groups of which all are among them."""
    known = set(addresses)
    whole = [group for group in inventory.groups if known.issuperset(linear.address for linear in group)]
    return [*addresses, *(group.fused for group in whole if group.fused)]


GPTQ = CheckpointFormat(
    name="gptq",
    problems=lambda plan, inventory, config: holding.gptq(plan, inventory),
    pack=_pack,
    read=_read,
    quantization_config=quantization_config,
    bytes=lambda plan, inventory, config: shards.predict(integers.tensors(PACKING), plan, inventory, config),
    finish=lambda job: shards.finish(job, dict.fromkeys(PACKING.places, quantization_config(job.plan, job.inventory))),
)
