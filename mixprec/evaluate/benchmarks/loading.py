"""Questions ready to be asked: from a source, cut to a number, with passages where the benchmark has them."""

from __future__ import annotations

import os
from pathlib import Path

from mixprec import recipe
from mixprec.core.errors import UserError
from mixprec.evaluate.benchmarks import catalogue
from mixprec.evaluate.benchmarks.retrieval import Retrieval, with_nearest
from mixprec.evaluate.benchmarks.schema import Question


def load(
    name: str,
    source: str | Path | None = None,
    revision: str | None = None,
    limit: int | None = None,
    *,
    data: Path | None = None,
    retrieval: Retrieval | None = None,
) -> list[Question]:
    """The questions of ``aime_2024``, ``folio``, ``temporal_sequences``, ``musique`` or ``musique_rag``.

    ``source``: a JSONL file with the hub's columns (``data:`` stands for the ``data`` folder or MIXPREC_DATA),
    ``hub:OWNER/NAME`` for a mirror, None for the hub's dataset. ``revision`` pins a commit of the hub; without one the
    content must be what the paper used. ``limit`` takes only the first so many. ``retrieval``: how
    ``musique_rag`` finds its passages.
    Raises UserError as ``catalogue.read`` and ``retrieval.with_nearest`` do, and for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise UserError(f"benchmarks: {name}: limit {limit}: at least 1, or leave it out")
    folder = data or (Path(os.environ[recipe.DATA_VARIABLE]) if os.environ.get(recipe.DATA_VARIABLE) else None)
    questions = catalogue.read(name, recipe.locate(str(source), folder) if source else None, revision)
    if name == "musique_rag":
        return with_nearest(questions, retrieval or Retrieval(), limit)
    return questions[:limit]
