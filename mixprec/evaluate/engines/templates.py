"""Prompts in a model's chat template."""

from __future__ import annotations

from typing import Any

from mixprec.errors import UserError


def templated(tokenizer: Any, prompt: str) -> str:
    """The prompt as the user's turn, without the leading special token that the tokenizer adds by itself.

    Raises UserError where the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template; let prompts go in as they are (raw, no --chat-template)")
    turn = [{"role": "user", "content": prompt}]
    text: str = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    begins_itself = tokenizer.bos_token and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(tokenizer.bos_token) if begins_itself else text
