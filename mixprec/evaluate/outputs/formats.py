"""Rows as tools write them: mixprec, lm-eval, lighteval, OpenAI's protocol, and plain JSON."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mixprec.core import parsing
from mixprec.core.errors import UserError
from mixprec.evaluate import generations
from mixprec.evaluate.outputs.rows import (
    KEYS,
    Output,
    Row,
    count_of,
    first,
    integer_of,
    name_of,
    names_in,
    outputs_under,
    prompt_of,
    text_of,
)
from mixprec.traces import thinking


class Format(NamedTuple):
    """``told``: whether a row is one; ``read``: its Row, None where it holds no output."""

    name: str
    told: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any], str, Mapping[str, str]], Row | None]


# --- this project's own generations -----------------------------------------------------------------------------------


def _read_ours(row: Mapping[str, Any], where: str, _: Mapping[str, str]) -> Row:
    key, record = generations.parse(row, where)
    output = Output(record.output, record.finish, record.tokens)
    origin = {name: row.get(name) for name in ("rows", "model", "prompts", "sampling")}
    return Row(where, (output,), key.id, seed=key.seed, benchmark=name_of(row["benchmark"]), origin=origin)


# --- lm-evaluation-harness: --log_samples -----------------------------------------------------------------------------


def _read_lm_eval(row: Mapping[str, Any], where: str, _: Mapping[str, str]) -> Row | None:
    """``resps`` has all that the model wrote; ``filtered_resps`` what a filter left of it. One line for each filter."""
    resps = row["resps"]
    while isinstance(resps, list) and len(resps) == 1 and isinstance(resps[0], list):
        resps = resps[0]
    if not isinstance(resps, list) or not resps:
        return None
    flat = [part for each in resps for part in (each if isinstance(each, list) else [each])]
    if not flat:
        return None
    doc = row["doc"] if isinstance(row["doc"], Mapping) else {}
    if {"prompt", "answer", "question"} == set(doc):  # a task of mixprec.evaluate.lm_eval_tasks
        with suppress(parsing.Malformed, TypeError):
            doc = dict(parsing.parse_json(doc["question"]))
    prompt = row.get("arguments")
    while isinstance(prompt, Mapping | list):  # the first argument of the first request
        prompt = next(iter(prompt.values() if isinstance(prompt, Mapping) else prompt), None)
    return Row(
        where,
        tuple(Output(text_of(each, where)) for each in flat),
        name_of(first(doc, KEYS["id"])),
        integer_of(row.get("doc_id")),
        prompt if isinstance(prompt, str) else None,
        raw=isinstance(prompt, str),
    )


# --- lighteval: --save-details ----------------------------------------------------------------------------------------


def _read_lighteval(row: Mapping[str, Any], where: str, _: Mapping[str, str]) -> Row | None:
    """``doc`` and ``model_response``; in older versions ``full_prompt`` and ``predictions``, as Python's repr too."""
    old = "predictions" in row
    response = {"text": row["predictions"]} if old else _object(row["model_response"], where)
    doc = {"query": row.get("full_prompt")} if old else _object(row["doc"], where)
    texts = _literal(response.get("text"), where)
    texts = texts if isinstance(texts, list) else [texts] * (texts is not None)
    thoughts = _literal(response.get("reasonings"), where)
    tokens = _literal(row.get("cont_tokens") if old else response.get("output_tokens"), where)
    outputs = [
        Output(
            thinking.joined(str(thought), text_of(text, where)) if thought else text_of(text, where),
            tokens=len(count) if isinstance(count, list) else None,
        )
        for text, thought, count in zip(texts, _padded(thoughts, texts), _padded(tokens, texts), strict=True)
    ]
    if not outputs:
        return None
    prompt, index = doc.get("query"), integer_of(doc.get("id"))
    return Row(
        where,
        tuple(outputs),
        None if index is not None else name_of(doc.get("id")),
        index,
        prompt if isinstance(prompt, str) else None,
        raw=old and isinstance(prompt, str),
    )


def _literal(value: Any, where: str) -> Any:
    """A value that may have been written as Python's repr."""
    if not isinstance(value, str) or value[:1] not in "[{":
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise UserError(f"{where}: details that can't be read: {value[:60]!r}") from None


def _object(value: Any, where: str) -> Mapping[str, Any]:
    found = _literal(value, where)
    if not isinstance(found, Mapping):
        raise UserError(f"{where}: details that are no object: {str(value)[:60]!r}")
    return found


def _padded(values: Any, like: Sequence[Any]) -> Sequence[Any]:
    return values if isinstance(values, list) and len(values) == len(like) else [None] * len(like)


# --- OpenAI: batch files and completions ------------------------------------------------------------------------------


_SERVERS = re.compile(r"(?:chatcmpl|cmpl|gen|resp|req|msg|batch)[-_]")


def _read_batch(row: Mapping[str, Any], where: str, _: Mapping[str, str]) -> Row | None:
    """A request that failed has no response, or a status that isn't 200."""
    response = row["response"]
    if not isinstance(response, Mapping) or response.get("status_code", 200) != 200:
        return None
    body = response.get("body")
    made = _read_completion(body, where, {}) if isinstance(body, Mapping) else None
    return made and made._replace(id=str(row["custom_id"]))


def _read_completion(row: Mapping[str, Any], where: str, _: Mapping[str, str]) -> Row | None:
    """Completions of chats and of texts, and responses; an ``id`` of the server's says nothing of the question."""
    key = next((name for name in ("choices", "output") if isinstance(row.get(name), list) and row[name]), None)
    if key is None:
        return None
    given = {
        "finish": row.get("status") if row.get("status") == "completed" else first(row, ("incomplete_details.reason",))
    }
    outputs = tuple(outputs_under({key: row[key], **(given if key == "output" else {})}, key, where))
    used = first(row, ("usage.completion_tokens", "usage.output_tokens"))
    if len(outputs) == 1:
        outputs = (outputs[0]._replace(tokens=count_of(used, where)),)
    others = {role: first(row, KEYS[role]) for role in ("index", "prompt", "seed")}
    name = name_of(first(row, ("custom_id", "question_id", "id")))
    name = None if name and _SERVERS.match(name) else name
    return Row(
        where, outputs, name, integer_of(others["index"]), prompt_of(others["prompt"]), integer_of(others["seed"])
    )


# --- plain rows -----------------------------------------------------------------------------------------------------


def plain_keys(data: Iterable[tuple[str, Mapping[str, Any]]], given: Mapping[str, str], path: Path) -> dict[str, str]:
    """Under which key each role stands: as given, else the first of KEYS that any row has a value under."""
    unknown = sorted(set(given) - set(KEYS))
    if unknown:
        raise UserError(f"--key {unknown[0]}=…: there are {', '.join(KEYS)}")
    found: dict[str, str] = {}
    rows = [row for _, row in data]
    for role, names in KEYS.items():
        if given.get(role) == "":
            continue
        wanted = (given[role],) if role in given else names
        name = next((name for name in wanted if any(first(row, (name,)) is not None for row in rows)), None)
        if name is not None and (role != "thinking" or name != found.get("output")):
            found[role] = name
        elif role in given:
            raise UserError(f"{path}: --key {role}={given[role]}: no row has it; they have {names_in(rows[0])}")
    if "output" not in found:
        held = f"its rows have the keys {names_in(rows[0])}" if rows[0] else "its first row is empty"
        raise UserError(f"{path}: no outputs found; {held}; say which key holds text: --key output=NAME")
    return found


def _read_plain(row: Mapping[str, Any], where: str, keys: Mapping[str, str]) -> Row | None:
    outputs = tuple(outputs_under(row, keys["output"], where, keys))
    if not outputs:
        return None
    found = {role: first(row, (name,)) for role, name in keys.items()}
    messages = found["output"] if keys["output"] == "messages" else row.get("messages")
    prompt = prompt_of(found.get("prompt")) or prompt_of(messages)
    seed = found.get("seed")
    if seed is not None and integer_of(seed) is None:
        raise UserError(f"{where}: key {keys['seed']!r}: {seed!r} is no integer; --key seed= passes it over")
    index = found.get("index")
    if index is not None and integer_of(index) is None:
        raise UserError(f"{where}: key {keys['index']!r}: {index!r} is no integer; --key index= passes it over")
    benchmark = found.get("benchmark")
    named = benchmark if isinstance(benchmark, str) else None
    return Row(where, outputs, name_of(found.get("id")), integer_of(index), prompt, integer_of(seed), named)


PLAIN = Format("plain JSON", lambda _: True, _read_plain)
_OURS = {"benchmark", "id", "seed", "output", "finish", "sampling"}
FORMATS = (
    Format("generations of mixprec", lambda row: set(row) >= _OURS, _read_ours),
    Format("samples of lm-eval", lambda row: {"doc", "resps"} <= set(row), _read_lm_eval),
    Format(
        "details of lighteval",
        lambda row: {"doc", "model_response"} <= set(row) or {"full_prompt", "predictions"} <= set(row),
        _read_lighteval,
    ),
    Format("OpenAI batch output", lambda row: {"custom_id", "response"} <= set(row), _read_batch),
    Format("completions of OpenAI's protocol", lambda row: isinstance(row.get("choices"), list), _read_completion),
    PLAIN,
)
