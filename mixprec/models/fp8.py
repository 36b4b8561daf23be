"""Weights in 8-bit floats with a scale for each block, as DeepSeek's and Qwen's releases have them.

They are read as bfloat16, w = stored · scale, the type that such models were trained in: whoever compresses them sees a
plain model. Layout: ``X.weight`` in F8_E4M3 beside ``X.weight_scale_inv``, one number for each ``weight_block_size``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

SCALE: Final = "weight_scale_inv"
STORED: Final = "F8_E4M3"
#: The type that they are read in.
READ: Final = "BF16"


class Scale(NamedTuple):
    """Where a weight's scales lie: a file, their name in it, and the rows and columns that share one."""

    file: Path
    name: str
    block: tuple[int, int]


def block_of(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns that share a scale by what config.json says; None where it says nothing of such weights."""
    said = config.get("quantization_config")
    if not isinstance(said, Mapping) or said.get("quant_method") != "fp8":
        return None
    block = said.get("weight_block_size")
    if not isinstance(block, list) or len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        return None
    return block[0], block[1]
