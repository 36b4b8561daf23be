"""Questions ready to be asked: from a source, cut to a number, with passages where the benchmark has them."""

from __future__ import annotations

import os
from pathlib import Path

from mixprec import recipe
from mixprec.errors import UserError
from mixprec.evaluate.benchmarks import catalogue
from mixprec.evaluate.benchmarks.schema import Question


def load(
    name: str,
    source: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
    *,
    data: Path | None = None,
) -> list[Question]:
    """The questions of ``aime_2024``, ``folio``, ``temporal_sequences``, ``musique`` or ``musique_rag``.

    ``source``: a JSONL file with the hub's columns (``data:`` stands for the ``data`` folder or MIXPREC_DATA),
    ``hub:OWNER/NAME`` for a mirror, None for the hub's dataset. ``revision`` pins a commit of the hub; without one the
    content must be what the paper used. ``limit`` takes only the first so many.
    Raises UserError as ``catalogue.read`` does, and for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise UserError(f"benchmarks: {name}: limit {limit}: at least 1, or leave it out")
    folder = data or (Path(os.environ[recipe.DATA_VARIABLE]) if os.environ.get(recipe.DATA_VARIABLE) else None)
    located = recipe.locate(source, folder) if source else None
    return catalogue.read(name, located, revision)[:limit]
