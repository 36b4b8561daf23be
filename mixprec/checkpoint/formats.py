"""The formats that a checkpoint can be written in, by their names in recipes."""

from __future__ import annotations

from typing import Final, Literal

from mixprec.checkpoint.base import CheckpointFormat
from mixprec.checkpoint.compressed_tensors import COMPRESSED_TENSORS
from mixprec.checkpoint.dense import DENSE
from mixprec.checkpoint.gguf.writer import gguf_format
from mixprec.checkpoint.gptq import GPTQ
from mixprec.core.errors import UserError
from mixprec.numerics.formats import GgmlFormat

FormatName = Literal["dense", "compressed-tensors", "gptq", "gguf"]

FORMATS: Final[dict[str, CheckpointFormat]] = {
    format.name: format for format in (DENSE, COMPRESSED_TENSORS, GPTQ, gguf_format())
}


def checkpoint_format(
    name: str, *, embedding: GgmlFormat | None = None, head: GgmlFormat | None = None
) -> CheckpointFormat:
    """The format of this name; ``embedding``, ``head``: their types in a GGUF file, by default the source's own.

    Raises UserError for one that mixprec does not write, and for types in another format than gguf.
    """
    if embedding is not None or head is not None:
        if name != "gguf":
            raise UserError(f"checkpoint.format: {name}: leaves embedding and head alone; types for them need gguf")
        return gguf_format(embedding, head)
    if name not in FORMATS:
        raise UserError(f"checkpoint.format: {name!r} can't be written; there are {', '.join(FORMATS)}")
    return FORMATS[name]
