"""Prompts to reason about: rows of a file, each with a text or a conversation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.traces import conversation
from mixprec.traces.store import full_id

#: What a key of a row may hold. ``messages``: a conversation.
ROLES = ("id", "dataset", "prompt", "messages")


class Prompt(TypedDict):
    """One instance: ``id`` is unique within its ``dataset`` (which may be empty). ``messages``: a whole conversation,
    of which ``prompt`` has the texts."""

    id: str
    dataset: str
    prompt: str
    messages: NotRequired[Sequence[Mapping[str, str]]]


def load_prompts(path: Path, keys: Mapping[str, str] | None = None) -> list[Prompt]:
    """Read prompts: JSON lines, or a JSON list, of rows with ``prompt`` or a conversation (``messages``, ShareGPT's
    ``conversations``), ``id`` and, if there are several, ``dataset``. Without ids rows are numbered from 1.

    ``keys``: role -> the file's key for it. Raises UserError naming file and row for missing keys, and conversations
    that can't be read.
    """
    keys = dict(keys or {})
    unknown = sorted(set(keys) - set(ROLES))
    if unknown:
        raise UserError(f"--key {unknown[0]}=…: there are {', '.join(ROLES)}")
    rows = _rows(path)
    if not rows:
        raise UserError(f"{path}: no prompts in this file")
    identifier = keys.get("id", "id")
    named = [identifier in row for row in rows]
    if not all(named) and (any(named) or "id" in keys):
        raise UserError(f"{path}: prompt {named.index(False) + 1}: key {identifier!r} is missing, other rows have it")
    return [_prompt(row, number, f"{path}: prompt {number}", keys, all(named)) for number, row in enumerate(rows, 1)]


def _rows(path: Path) -> list[dict[str, Any]]:
    """Of JSON lines, or of one list, as ShareGPT's files are."""
    text = artifacts.read_text(path) if path.is_file() else ""
    if not text.lstrip().startswith("["):
        return artifacts.read_jsonl(path)
    rows = artifacts.parse_json(text, path)
    wrong = next((number for number, row in enumerate(rows, 1) if not isinstance(row, dict)), None)
    if wrong is not None:
        raise UserError(f"{path}: prompt {wrong}: no object")
    return list(rows)


def _prompt(row: Mapping[str, Any], number: int, where: str, keys: Mapping[str, str], named: bool) -> Prompt:
    name = row[keys.get("id", "id")] if named else number
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise UserError(f"{where}: key {keys.get('id', 'id')!r} is no text and no number")
    made = Prompt(id=str(name), dataset=str(row.get(keys.get("dataset", "dataset")) or ""), prompt="")
    key = keys.get("prompt", "prompt")
    if isinstance(row.get(key), str) and "messages" not in keys:
        made["prompt"] = row[key]
        return made
    told = keys.get("messages") or (key if isinstance(row.get(key), list) else conversation.key_of(row))
    if told is None or not isinstance(row.get(told), list):
        raise UserError(
            f"{where}: key {told or key!r} is missing or no text; the row has {', '.join(map(str, row)) or 'no key'}; "
            "say which key holds what: --key prompt=NAME or --key messages=NAME"
        )
    turns = conversation.to_answer(row[told], where)
    made["messages"], made["prompt"] = turns, conversation.joined(turns)
    return made


def by_id(prompts: Sequence[Prompt]) -> dict[str, Prompt]:
    """Id of its trace -> prompt. Raises UserError for two prompts with one id."""
    names = [full_id(row["id"], row["dataset"]) for row in prompts]
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise UserError(f"prompt {twice!r} stands twice; ids must be unique within their dataset")
    return dict(zip(names, prompts, strict=True))
