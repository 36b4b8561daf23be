"""Chat templates: what they write goes to the model as it is, and their faults are the user's to know."""

from __future__ import annotations

import pytest
import tiny

from mixprec.core.errors import UserError
from mixprec.evaluate.engines.templates import templated

TURN = [{"role": "user", "content": "hi"}]
NAMED = {"default": "<{{ messages[0].content }}>", "tool_use": "TOOLS"}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ bos_token }}[{{ messages[0].content }}]", "<s>[hi]"),  # has no generation prompt, like Mistral's
        ("{{ messages[0].content }}{% if add_generation_prompt %}A:{% endif %}", "hiA:"),
        (NAMED, "<hi>"),
    ],
)
def test_what_a_template_writes(template: str | dict[str, str], text: str) -> None:
    words = tiny.tokenizer()
    words.chat_template = template
    assert templated(words, TURN) == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ({"tool_use": "x", "rag": "y"}, r"can't be filled in \(.*rag.*tool_use"),
        ("{% if %}", "chat template can't be filled in"),
        ("{{ raise_exception('Roles must alternate') }}", r"can't be filled in \(Roles must alternate\)"),
        ("{{ messages[3].content.text }}", "can't be filled in"),
        ("{{ 1 / 0 }}", r"can't be filled in \(division by zero\)"),
    ],
)
def test_templates_that_fail(template: str | dict[str, str] | None, message: str) -> None:
    words = tiny.tokenizer()
    words.chat_template = template
    with pytest.raises(UserError, match=message) as caught:
        templated(words, TURN)
    assert "\n" not in str(caught.value)
