"""What the hub takes for a repository's id."""

from __future__ import annotations

import re
from typing import Final

from mixprec.core.errors import UserError

_PART: Final = r"(?=\w)[\w.-]{1,96}(?<=\w)"
_ID: Final = re.compile(f"{_PART}/{_PART}", re.ASCII)


def is_hub_id(text: str) -> bool:
    """Whether ``text`` is an owner/name of the hub, by huggingface_hub's rules, which takes a tenth of a second to
    import."""
    return _ID.fullmatch(text) is not None and not any(part in text for part in ("--", "..")) and text[-4:] != ".git"


def checked_id(text: str) -> str:
    """``text``. Raises UserError where it is no id of the hub."""
    if not is_hub_id(text):
        raise UserError(f"base model: {text!r} is no id of the hub; write owner/name")
    return text
