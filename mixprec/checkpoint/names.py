"""The formats that a checkpoint can be written in, by their names in recipes. ``formats.py`` writes them."""

from __future__ import annotations

from typing import Final, Literal, get_args

from mixprec.core.errors import UserError
from mixprec.numerics.formats import GgmlFormat

FormatName = Literal["dense", "compressed-tensors", "gptq", "awq", "mlx", "gguf"]
FORMAT_NAMES: Final[tuple[str, ...]] = get_args(FormatName)


def check_format(name: str, embedding: GgmlFormat | None = None, head: GgmlFormat | None = None) -> None:
    """Raises UserError for a format that mixprec does not write, and for types of embedding and head in another format
    than gguf."""
    if name not in FORMAT_NAMES:
        raise UserError(f"checkpoint.format: {name!r} can't be written; there are {', '.join(FORMAT_NAMES)}")
    if name != "gguf" and (embedding is not None or head is not None):
        raise UserError(f"checkpoint.format: {name}: leaves embedding and head alone; types for them need gguf")
