"""A request's thinking budget with a model's tokenizer."""

from __future__ import annotations

from mixprec.evaluate.engines.base import Request
from mixprec.evaluate.engines.budget import Watch
from mixprec.models.encoding import Encoder


def watching(request: Request, prompt: str, encoder: Encoder) -> Watch | None:
    """Who watches over the output behind ``prompt``; None without a budget."""
    if request.budget is None:
        return None
    return Watch(request.budget, prompt, encoder.decode, lambda text: encoder.piece(text).ids, request.key)
