"""What writes and reads a checkpoint, by the format's name (names.py)."""

from __future__ import annotations

from typing import Final

from mixprec.checkpoint.base import CheckpointFormat
from mixprec.checkpoint.gguf.writer import gguf_format
from mixprec.checkpoint.names import check_format
from mixprec.checkpoint.safetensors import IN_SAFETENSORS
from mixprec.numerics.formats import GgmlFormat

FORMATS: Final[dict[str, CheckpointFormat]] = IN_SAFETENSORS | {"gguf": gguf_format()}


def checkpoint_format(
    name: str, *, embedding: GgmlFormat | None = None, head: GgmlFormat | None = None
) -> CheckpointFormat:
    """The format of this name; ``embedding``, ``head``: their types in a GGUF file, by default the source's own.

    Raises UserError as ``check_format`` does.
    """
    check_format(name, embedding, head)
    if embedding is not None or head is not None:
        return gguf_format(embedding, head)
    return FORMATS[name]
