"""Prompts in a model's chat template."""

from __future__ import annotations

from typing import Any

from mixprec.core.errors import UserError, reason
from mixprec.models.model import Model


def templated(tokenizer: Any, prompt: str) -> str:
    """The prompt as the user's turn, with all that the template writes around it, its BOS too.

    Of several named templates it is ``default``. Raises UserError where the tokenizer has no template, none of that
    name, or one that takes no user's turn alone.
    """
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template")
    turn = [{"role": "user", "content": prompt}]
    try:
        return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    except Exception as problem:  # a template is a program, and fails in as many ways
        raise UserError(f"the tokenizer's chat template can't be filled in ({reason(problem)})") from None


def require(model: Model, asked: str, instead: str) -> None:
    """See to it that prompts can go into the chat template of ``model``, without reading its weights.

    ``asked``: what asked for the template; ``instead``: what to write instead. Raises UserError with both.
    """
    tokenizer = model.tokenizer
    try:
        templated(tokenizer, "Is there a template?")
    except UserError as problem:
        raise UserError(f"{asked}: {model.id}: {problem}; {instead}") from None
