"""How a question is put to a model: the paper's plain text, or a message in the model's chat template."""

from __future__ import annotations

from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from mixprec.errors import UserError
from mixprec.evaluate.benchmarks.schema import THINK, Question

Style = Literal["paper", "chat"]


def chat_messages(question: Question) -> list[dict[str, str]]:
    """The question as one message of the user, without a system prompt (as DeepSeek advises for R1)."""
    return [{"role": "user", "content": question.message}]


def render(question: Question, style: Style, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
    """The text that the model continues.

    ``paper``: the paper's prompt, to be tokenized with the special tokens in front. ``chat``: the message in the
    tokenizer's chat template, special tokens included. Templates of reasoning models open the thinking themselves;
    for one that doesn't it is left to the model.
    Raises UserError where ``chat`` is asked of a tokenizer without a template.
    """
    if style == "paper":
        return question.prompt
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise UserError("prompts: chat: this tokenizer has no chat template; take the style 'paper'")
    text: Any = tokenizer.apply_chat_template(chat_messages(question), tokenize=False, add_generation_prompt=True)
    return str(text)


def opens_thinking(prompt: str) -> bool:
    """Whether a prompt leaves the model inside its thinking, so that its output must close what it never opened."""
    return prompt.rstrip().endswith(THINK.strip())
