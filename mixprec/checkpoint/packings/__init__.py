"""How packed modules lie in safetensors files: names, types and shapes, what config.json says of them."""

from __future__ import annotations

from typing import Final

from mixprec.checkpoint.packings import awq, compressed_tensors, gptq, mlx
from mixprec.checkpoint.packings.packing import Packing

#: By the name of the format, which is the quant_method too; MLX says none.
PACKINGS: Final[dict[str, Packing]] = {
    "compressed-tensors": compressed_tensors.PACKING,
    "gptq": gptq.PACKING,
    "awq": awq.PACKING,
    "mlx": mlx.PACKING,
}
