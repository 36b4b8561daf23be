"""What writes and reads a checkpoint, by the format's name (names.py)."""

from __future__ import annotations

from typing import Final

from mixprec.checkpoint.base import CheckpointFormat
from mixprec.checkpoint.gguf.writer import GGUF
from mixprec.checkpoint.names import check_format
from mixprec.checkpoint.safetensors import IN_SAFETENSORS

FORMATS: Final[dict[str, CheckpointFormat]] = IN_SAFETENSORS | {"gguf": GGUF}


def checkpoint_format(name: str) -> CheckpointFormat:
    """The format of this name. Raises UserError for one that mixprec does not write."""
    check_format(name)
    return FORMATS[name]
