"""What a server with OpenAI's protocol answers, read as a stranger's file is."""

from __future__ import annotations

import math
import time
from email.utils import parsedate_to_datetime
from typing import Any

from mixprec.core import parsing
from mixprec.evaluate.engines.base import Finish, Generation, Request
from mixprec.traces import thinking

#: Seconds that a server may ask to wait each time.
LONGEST_PAUSE = 60.0
#: What servers call a filter that let a prompt or an answer not through: as finish_reason, and in errors.
WITHHELD = ("content_filter", "content_policy_violation")


def read(body: bytes, request: Request, refusable: bool) -> Generation:
    """The generation in an answer; ``refusable``: one that a filter withheld is one too.

    Raises ValueError for garbage: a proxy's page, half an answer, no text.
    """
    try:
        data = parsing.parse_json(body.decode("utf-8"), finite=False)
        choice = data["choices"][0]
        text = _text_of(choice["message"]) if request.chat else choice["text"]
        reason = choice.get("finish_reason")
        withheld = refusable and reason in WITHHELD
        usage = data.get("usage") or {}
        counts = [usage.get(name) for name in ("completion_tokens", "prompt_tokens")]
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError from None
    if withheld and text is None:
        text = ""
    if not isinstance(text, str):
        raise ValueError(f"its text is of type {type(text).__name__}")
    if not withheld and reason not in ("stop", "length", "eos", "eos_token"):
        raise ValueError(f"finish_reason {reason!r}")
    tokens, prompt_tokens = (count if type(count) is int and 0 <= count < 2**31 else None for count in counts)
    finish: Finish = "withheld" if withheld else "length" if reason == "length" else "stop"
    return Generation(request.key, text, finish, tokens, prompt_tokens, request.prompt)


def _text_of(message: dict[str, Any]) -> str:
    """A chat message's text; thinking that the server has taken out is put in front again."""
    thought = message.get("reasoning_content") or message.get("reasoning") or ""
    content = message.get("content") or message.get("refusal") or ""
    for part in (thought, content):
        if not isinstance(part, str):
            raise ValueError(f"its text is of type {type(part).__name__}")
    return thinking.joined(thought, content) if thought else content


def retry_after(value: str | None) -> float | None:
    """Seconds that the server asks to wait, given as seconds or as a date; at most a minute each time."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), LONGEST_PAUSE)
