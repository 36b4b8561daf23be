"""A model's tokenizer."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from mixprec.core.errors import UserError
from mixprec.core.upstream import first_line, quiet
from mixprec.models import kinds
from mixprec.models.encoding import Encoder, declared_bos
from mixprec.models.locate import commit, resolve


def load_encoder(model_id: str, revision: str | None, rows: int) -> Encoder:
    """What encodes text for ``model_id``; ``rows``: of its embedding.

    Raises UserError where there is no tokenizer, it gives no character offsets, or it belongs to another model.
    """
    where, revision = resolve(model_id), commit(model_id, revision)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=False)
            add_bos = declared_bos(where, revision)
    except Exception as problem:  # transformers raises many kinds; all mean a bad tokenizer
        lacking = kinds.without_tokenizer(Path(where)) if Path(where).is_dir() else None
        if lacking is not None:
            raise UserError(f"model.id: {model_id}: {lacking}") from None
        raise UserError(f"model.id: {model_id}: can't be loaded from {where} ({first_line(problem)})") from None
    if isinstance(tokenizer.model_max_length, bool) or not isinstance(tokenizer.model_max_length, int | float):
        raise UserError(f"model.id: {model_id}: tokenizer_config.json: model_max_length is no number")
    if not tokenizer.is_fast:
        raise UserError(
            f"model.id: {model_id}: its tokenizer gives no character offsets; "
            "a fast tokenizer (tokenizer.json) is needed to find spans"
        )
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"model.id: {model_id}: its tokenizer has {tokenizer.vocab_size} tokens, its embedding only {rows} rows; "
            "they belong to different models"
        )
    return Encoder(tokenizer, rows, add_bos)
