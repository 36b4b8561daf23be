"""What a row of a file of outputs says: which question, which texts, how they ended; under keys of many names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mixprec.core.errors import UserError
from mixprec.evaluate.engines.base import Finish
from mixprec.traces import thinking

#: What a plain row says, and the keys that it may say it under; those in front go before. A point leads inside.
KEYS: dict[str, tuple[str, ...]] = {
    "id": (
        *("id", "ID", "question_id", "qid", "example_id", "problem_id", "unique_id", "uid", "custom_id", "task_id"),
        *("doc.id", "metadata.id"),
    ),
    "index": ("index", "idx", "doc_id", "question_index", "row", "row_index"),
    "output": (
        *("output", "response", "generation", "completion", "generated_text", "output_text", "model_output"),
        *("model_response", "raw_output", "prediction", "text", "content", "outputs", "responses", "generations"),
        *("completions", "predictions", "samples", "choices", "messages", "message"),
    ),
    "finish": (
        *("finish", "finish_reason", "stop_reason", "done_reason", "stop_type", "meta_info.finish_reason"),
        *("details.finish_reason", "truncated"),
    ),
    "tokens": (
        *("tokens", "completion_tokens", "usage.completion_tokens", "output_tokens", "num_tokens", "n_tokens"),
        *("generated_tokens", "token_ids", "eval_count", "tokens_predicted", "meta_info.completion_tokens"),
    ),
    "thinking": ("reasoning_content", "reasoning", "thinking", "thought"),
    "prompt": ("prompt", "full_prompt", "question", "problem", "input", "query", "instruction"),
    "seed": ("seed", "epoch", "repeat", "trial", "sample_index"),
    "benchmark": ("benchmark", "dataset", "task", "task_name"),
}
#: Words for the ways in which a generation ends.
_FINISHES: dict[str, Finish] = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence", "stop_token", "word", "end"), "stop"),
    **dict.fromkeys(("finished", "completed", "complete", "done"), "stop"),
    **dict.fromkeys(
        ("length", "limit", "max_tokens", "max_output_tokens", "max_length", "max_new_tokens", "token_limit"), "length"
    ),
}
_UNKNOWN = ("", "null", "none", "unknown")


class Output(NamedTuple):
    """One output; ``finish`` and ``tokens`` are None where nobody wrote them down."""

    text: str
    finish: Finish | None = None
    tokens: int | None = None


class Row(NamedTuple):
    """The outputs to one question. ``where`` names file and row; ``origin``: what generations were made from.

    The question is known by ``id``, ``number`` (its row) or ``prompt``; ``seed`` says which pass it is. ``raw``: the
    prompt is the text that the model saw.
    """

    where: str
    outputs: tuple[Output, ...]
    id: str | None = None
    number: int | None = None
    prompt: str | None = None
    seed: int | None = None
    benchmark: str | None = None
    raw: bool = False
    origin: Mapping[str, Any] | None = None


def outputs_under(
    row: Mapping[str, Any], key: str, where: str, keys: Mapping[str, str] | None = None
) -> Iterator[Output]:
    """The outputs under a key: a text, an object that holds one, a conversation, or a list of such."""
    value = first(row, (key,))
    if value is None:
        return
    if isinstance(value, list) and value and all(isinstance(each, Mapping) and "role" in each for each in value):
        value = value[-1] if value[-1]["role"] == "assistant" else None
        if value is None:
            return
    if isinstance(value, list) and value and all(isinstance(each, Mapping) and "type" in each for each in value):
        thought, text = ("".join(_parts(value, kinds)) for kinds in (_THOUGHT, _SAID))
        row, value = {"reasoning": thought, **row}, text
    if isinstance(value, str):
        names = {role: ((keys or {}).get(role),) if keys else KEYS[role] for role in ("thinking", "finish", "tokens")}
        thought, finish, tokens = (first(row, tuple(filter(None, names[role]))) for role in names)
        text = thinking.joined(thought, value) if isinstance(thought, str) and thought.strip() else value
        yield Output(text, finish_of(finish, where), count_of(tokens, where))
    elif isinstance(value, Mapping):
        inner = output_key(value)
        if inner is None and "content" in value:  # a message that is all thinking, or a call of a tool
            inner, value = "content", {**value, "content": ""}
        if inner is None:
            raise UserError(f"{where}: key {key!r}: an object without a text; it has {names_in(value)}")
        # What the object doesn't say of itself stands beside it: a choice's finish_reason is not its message's.
        beside = {name: entry for name, entry in row.items() if name != key}
        yield from outputs_under({**beside, **value}, inner, where)
    elif isinstance(value, list):
        for number, each in enumerate(value):
            # Lists beside it, of as many, say what each output's own is.
            own = {
                name: entry[number] if isinstance(entry, list) and len(entry) == len(value) else entry
                for name, entry in row.items()
            }
            yield from outputs_under({**own, key: each}, key, where, keys)
    else:
        raise UserError(f"{where}: key {key!r} holds {type(value).__name__}, not text")


_THOUGHT, _SAID = ("thinking", "reasoning", "reasoning_text", "summary_text"), ("text", "output_text")


def _parts(value: Any, kinds: Sequence[str]) -> Iterator[str]:
    """The texts of some kinds in a message of parts, and in messages of such."""
    for part in value if isinstance(value, list) else ():
        if isinstance(part, Mapping):
            said = first(part, ("text", "thinking")) if part.get("type") in kinds else None
            yield from [said] if isinstance(said, str) else []
            for inside in ("content", "summary"):
                yield from _parts(part.get(inside), kinds)


def output_key(row: Mapping[str, Any]) -> str | None:
    """The key under which an object has its output."""
    return next((name for name in KEYS["output"] if first(row, (name,)) is not None), None)


def first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first value that is there under one of the names; points lead into objects."""
    for name in names:
        value: Any = row.get(name)
        if value is None and "." in name:
            value = row
            for part in name.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    return None


def text_of(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: an output is {type(value).__name__}, no text")
    return value


def name_of(value: Any) -> str | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def integer_of(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value.strip()):
        return int(value)
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return int(value) if whole and not isinstance(value, bool) else None


def count_of(value: Any, where: str) -> int | None:
    if isinstance(value, list):
        return len(value)
    count = integer_of(value)
    if value is not None and (count is None or count < 0):
        raise UserError(f"{where}: {value!r} is no number of tokens")
    return count


def finish_of(value: Any, where: str) -> Finish | None:
    """How an output ended. Raises UserError for what is neither an end nor a cut, as a filter or an abort."""
    if isinstance(value, Mapping):
        value = value.get("type")
    if isinstance(value, bool):  # "truncated"
        return "length" if value else "stop"
    word = str(value if value is not None else "").strip().lower().replace(" ", "_")
    if word in _UNKNOWN:
        return None
    if word not in _FINISHES:
        raise UserError(
            f"{where}: an output finished by {value!r}; known are {', '.join(_FINISHES)}. Leave out rows that the "
            "model didn't end; where this isn't how it ended, --key finish= passes the key over"
        )
    return _FINISHES[word]


def prompt_of(value: Any) -> str | None:
    """A prompt's text; of a conversation the last message of the user."""
    if isinstance(value, list):
        turns = [each for each in value if isinstance(each, Mapping) and each.get("role") == "user"]
        value = turns[-1].get("content") if turns else None
    return value if isinstance(value, str) else None


def names_in(row: Mapping[str, Any]) -> str:
    """The keys of a row, for a message."""
    return ", ".join(map(str, list(row)[:20]))
