"""The formats that a checkpoint can be written in, by their names in recipes."""

from __future__ import annotations

from typing import Final, Literal

from mixprec.checkpoint.base import CheckpointFormat
from mixprec.checkpoint.compressed_tensors import COMPRESSED_TENSORS
from mixprec.checkpoint.dense import DENSE
from mixprec.checkpoint.gptq import GPTQ
from mixprec.errors import UserError

FormatName = Literal["dense", "compressed-tensors", "gptq", "gguf"]

FORMATS: Final[dict[str, CheckpointFormat]] = {format.name: format for format in (DENSE, COMPRESSED_TENSORS, GPTQ)}


def checkpoint_format(name: str) -> CheckpointFormat:
    """The format of this name.

    Raises UserError for one that mixprec does not write.
    """
    if name not in FORMATS:
        raise UserError(f"checkpoint.format: {name!r} can't be written; there are {', '.join(FORMATS)}")
    return FORMATS[name]
