"""Prompts in a model's chat template."""

from __future__ import annotations

import sys
from typing import Any

from jinja2 import TemplateError

from mixprec import models
from mixprec.errors import UserError


def templated(tokenizer: Any, prompt: str) -> str:
    """The prompt as the user's turn, without the leading special token that the tokenizer adds by itself.

    Raises UserError where the tokenizer has no chat template, or none that takes a user's turn alone.
    """
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template")
    turn = [{"role": "user", "content": prompt}]
    try:
        text: str = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    except (TemplateError, ValueError, TypeError, KeyError) as problem:
        raise UserError(f"the tokenizer's chat template can't be filled in ({problem})") from None
    begins_itself = tokenizer.bos_token and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(tokenizer.bos_token) if begins_itself else text


def require(model: str, revision: str | None, asked: str, instead: str) -> None:
    """See to it that prompts can go into the chat template of ``model``, without reading its weights.

    ``asked``: what asked for the template; ``instead``: what to write instead. Raises UserError with both.
    """
    tokenizer = models.load_tokenizer(model, models.resolve(model), revision, sys.maxsize)
    try:
        templated(tokenizer, "Is there a template?")
    except UserError as problem:
        raise UserError(f"{asked}: {model}: {problem}; {instead}") from None
