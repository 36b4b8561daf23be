"""What every checkpoint's folder gets beside its weights, whoever made them: side files, model card, checksums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixprec.checkpoint.base import CheckpointFormat, Finish
from mixprec.checkpoint.integrity import seal
from mixprec.checkpoint.modelcard import Told, model_card
from mixprec.checkpoint.target import write_side_files
from mixprec.models.modelfiles import README


def complete(made: Finish, format: CheckpointFormat, told: Told, card: Mapping[str, Any]) -> None:
    """Complete the folder of ``made``, which holds weights and config.json in ``format``; mixprec.json comes last.

    ``told``: what the model card says besides the plan. ``card``: plan and provenance, for mixprec.json.
    """
    write_side_files(made.folder, made.source)
    text = model_card(made.plan, made.inventory, made.config, made.source.folder, format, told)
    (made.folder / README).write_text(text, encoding="utf-8")
    seal(made.folder, card)
