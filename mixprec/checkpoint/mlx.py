"""The ``mlx`` format, affine, as mlx-lm reads it: 2, 3, 4, 5, 6 and 8 bits in groups of 32, 64 and 128, mixed freely.

Each group has an offset in the place of a zero point: −scale · zero point, which 16 bits hold exactly where the grid
is symmetric, else rounded. Embedding and head are packed as linears are, tied or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mixprec.checkpoint import holding, integers, packed, shards
from mixprec.checkpoint.base import CheckpointFormat, Held
from mixprec.checkpoint.packings.mlx import CODES, OFFSETS, PACKING, SCALES
from mixprec.checkpoint.said import Said
from mixprec.checkpoint.target import CompressedModule
from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder, Linear
from mixprec.numerics import affine, packing
from mixprec.numerics.affine import AffineQuantized
from mixprec.numerics.formats import AffineFormat, AnyFormat, Format, GridFormat
from mixprec.numerics.groupwise import Quantized
from mixprec.plan.schema import Plan


def pack_codes(quantized: AffineQuantized, format: GridFormat) -> dict[str, Tensor]:
    """The tensors that hold codes (out, in), scales and offsets, by their names within the module."""
    words = packing.pack(quantized.codes, format.bits).view(torch.uint32)
    return {CODES: words, SCALES: quantized.scales, OFFSETS: quantized.offsets}


def unpack_codes(tensors: Mapping[str, Tensor], format: GridFormat, columns: int) -> AffineQuantized:
    """The inverse of ``pack_codes``, for a weight of so many columns."""
    codes = packing.unpack(tensors[CODES].view(torch.int32), format.bits, columns)
    return AffineQuantized(codes, tensors[SCALES], tensors[OFFSETS])


def _pack(module: CompressedModule, plan: Plan) -> dict[str, Tensor]:
    address, format, quantized = module.weight_name.removesuffix(".weight"), module.format, module.quantized
    if isinstance(quantized, Quantized):
        assert isinstance(format, Format)
        made = affine.of_grid(quantized, format)
        if made is None:
            raise UserError(
                f"{address}: scales times zero points are no offsets in {quantized.grid.scales.dtype}; keep this "
                "module, or write another format"
            )
        quantized = made
    assert isinstance(quantized, AffineQuantized) and isinstance(format, GridFormat)
    return {f"{address}.{name}": tensor for name, tensor in pack_codes(quantized, format).items()}


def _read(module: Linear, tensors: Mapping[str, Tensor], format: AnyFormat, by: Plan | Said | None) -> Held:
    assert isinstance(format, GridFormat)
    found = unpack_codes(packed.local(module.address, tensors), format, module.in_features)
    if isinstance(format, AffineFormat):
        return Held(found, format)
    grid = affine.to_grid(found, format.bits)
    if grid is None:
        raise UserError(f"{module.address}.{OFFSETS} are not those of a grid with zero points")
    if not format.symmetric and grid.grid.zeros is None:  # all zero points may be the middle
        half = torch.full_like(grid.grid.scales, 2 ** (format.bits - 1), dtype=torch.uint8)
        grid = Quantized(found.codes, grid.grid._replace(zeros=half))
    return Held(grid, format)


def quantization_config(plan: Plan, inventory: Decoder) -> dict[str, Any]:
    """What config.json says: the grid of most modules, others by their paths, false for those that are kept."""
    grids: dict[str, dict[str, int] | None] = {}
    for module in inventory.matrices:
        format = plan.formats.get(module.address)
        if isinstance(format, GridFormat):
            grids[module.address] = {"group_size": format.width(module.in_features), "bits": format.bits}
        else:
            grids[module.address] = None
    count = Counter(tuple(grid.values()) for grid in grids.values() if grid)
    size, bits = count.most_common(1)[0][0] if count else (64, 4)  # nothing is packed: what is said must still parse
    base = {"group_size": size, "bits": bits}
    return base | {address: grid or False for address, grid in grids.items() if grid != base}


MLX = CheckpointFormat(
    name="mlx",
    problems=lambda plan, inventory, config: holding.mlx(plan, inventory),
    pack=_pack,
    read=_read,
    quantization_config=quantization_config,
    bytes=lambda plan, inventory, config: shards.predict(integers.tensors(PACKING), plan, inventory, config),
    finish=lambda job: shards.finish(job, dict.fromkeys(PACKING.places, quantization_config(job.plan, job.inventory))),
)
