"""Conversations as data sets have them: chat ``messages``, and ShareGPT's ``conversations``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixprec.core.errors import UserError

#: Messages in order, each with ``role`` and ``content``.
Turns = Sequence[Mapping[str, str]]

#: Keys that a row may have its conversation under.
KEYS = ("messages", "conversations", "conversation")
#: ShareGPT's words for who speaks, and chat templates' words for them.
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant"}
_KNOWN = ("system", "developer", "user", "assistant")


def key_of(row: Mapping[str, Any]) -> str | None:
    """The key under which a row has a conversation."""
    return next((key for key in KEYS if isinstance(row.get(key), list)), None)


def to_answer(turns: Any, where: str) -> list[dict[str, str]]:
    """The turns of a conversation up to the last one by the user, which is what is to be answered.

    What stands behind, usually somebody's answer, is left out. Raises UserError naming ``where`` for turns that are
    none, roles that no chat template knows (tools), and conversations without a user.
    """
    read = [_turn(turn, f"{where}: turn {number}") for number, turn in enumerate(turns, 1)]
    last = max((at for at, turn in enumerate(read) if turn["role"] == "user"), default=None)
    if last is None:
        raise UserError(f"{where}: no turn by a user; nothing to answer")
    return read[: last + 1]


def joined(turns: Turns) -> str:
    """The texts of all turns, with an empty line between."""
    return "\n\n".join(turn["content"] for turn in turns)


def _turn(turn: Any, where: str) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise UserError(f"{where}: no object with role and content, or from and value")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if isinstance(content, list):  # parts, as of OpenAI's protocol
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        whole = len(texts) == len(content) and all(isinstance(text, str) for text in texts)
        content = "\n".join(map(str, texts)) if whole else None
    if not isinstance(role, str) or not isinstance(content, str):
        raise UserError(
            f"{where}: its role or its content is missing or no text; only conversations in text can be read"
        )
    role = _ROLES.get(role, role)
    if role not in _KNOWN:
        raise UserError(
            f"{where}: role {role!r}; known are {', '.join((*_KNOWN, *_ROLES))}; leave such conversations out"
        )
    return {"role": role, "content": content}
