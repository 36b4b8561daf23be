"""What config.json in a model's folder says of its sizes, without transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.models.sizes import check_architecture
from mixprec.models.source import tied

NAME: Final = "config.json"


def read(folder: Path) -> dict[str, Any]:
    """The object in a folder's config.json, the head tied to the embedding where the tensors are.

    Raises UserError where it is missing or broken, and for architectures that are not supported.
    """
    try:
        found = artifacts.read_object(folder / NAME, finite=False)
    except UserError as problem:
        raise UserError(f"model.id: {folder}: {problem}") from None
    check_architecture(found, f"model.id: {folder}")
    return found | {"tie_word_embeddings": tied(folder, found)}
