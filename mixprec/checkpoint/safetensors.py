"""The formats whose checkpoints are safetensors files."""

from __future__ import annotations

from typing import Final

from mixprec.checkpoint.awq import AWQ
from mixprec.checkpoint.base import CheckpointFormat
from mixprec.checkpoint.compressed_tensors import COMPRESSED_TENSORS
from mixprec.checkpoint.dense import DENSE
from mixprec.checkpoint.gptq import GPTQ
from mixprec.checkpoint.mlx import MLX

IN_SAFETENSORS: Final[dict[str, CheckpointFormat]] = {
    format.name: format for format in (DENSE, COMPRESSED_TENSORS, GPTQ, AWQ, MLX)
}
