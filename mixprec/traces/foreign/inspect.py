"""Logs of inspect_ai (https://inspect.aisi.org.uk/eval-logs.html): an archive of JSON files (.eval), or one JSON file.

Each sample becomes a trace: its messages up to the last answer, and that answer with its thinking in front. An
annotation is read where a sample's metadata, or that of one of its scores, has it as ``annotated``.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixprec.core import artifacts
from mixprec.core.errors import UserError, reason
from mixprec.traces import conversation, thinking
from mixprec.traces.conversation import Turns
from mixprec.traces.foreign.base import Found
from mixprec.traces.store import Trace, full_id

_PROGRAM = "inspect_ai"
_SAMPLE = re.compile(r"samples/.+\.json\Z")
_ATTACHMENT = "attachment://"
#: Bytes of one sample, unpacked; an archive could claim to hold any number.
_LARGEST = 1 << 30
#: What zipfile raises for bytes that changed; OSError and ValueError where a member's place lies outside the file.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, struct.error, LookupError)
_CONVERT = "write it as JSON: inspect log convert --to json --output-dir FOLDER FILE"
Template = Callable[[Turns], str]


def read_archive(path: Path, template: Template | None) -> Found:
    """A log in an archive. Raises UserError for other or damaged archives, and as ``read_log`` does."""
    try:
        opened = zipfile.ZipFile(path)
    except _DAMAGE as problem:
        raise UserError(f"{path}: a damaged archive ({reason(problem)}); copy the log again") from None
    with opened as archive:
        names = archive.namelist()
        head = next((name for name in ("header.json", "_journal/start.json") if name in names), None)
        if head is None:
            raise UserError(f"{path}: an archive that is no log of inspect_ai: it has no header.json")
        header = _member(archive, head, path)
        samples = (_member(archive, name, path) for name in sorted(names) if _SAMPLE.match(name))
        return _read(header, samples, path, template, finished="header.json" in names)


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> Any:
    if archive.getinfo(name).file_size > _LARGEST:
        raise UserError(f"{path}: {name} has more than {_LARGEST >> 20} MiB; {_CONVERT}")
    try:
        text = archive.read(name).decode("utf-8")
    except NotImplementedError:
        raise UserError(f"{path}: compressed by a method that this Python can't read (zstd); {_CONVERT}") from None
    except _DAMAGE as problem:
        raise UserError(f"{path}: {name} is damaged ({reason(problem)}); copy the log again") from None
    return artifacts.parse_json(text, f"{path}: {name}", finite=False)


def read_log(data: Mapping[str, Any], path: Path, template: Template | None) -> Found:
    """A log in one JSON file.

    Samples without an answer in text are left out and counted. Raises UserError naming file and sample for messages
    that can't be read, texts that lie elsewhere, and a log without samples.
    """
    return _read(data, data.get("samples") or (), path, template, finished=True)


def _read(header: Any, samples: Iterable[Any], path: Path, template: Template | None, *, finished: bool) -> Found:
    about = header.get("eval") if isinstance(header, dict) else None
    about = about if isinstance(about, dict) else {}
    rows: list[tuple[Any, str, Mapping[str, Any]]] = []
    for number, sample in enumerate(samples, 1):
        if not isinstance(sample, dict) or "id" not in sample:
            raise UserError(f"{path}: sample {number}: no object with an id; is this a log of inspect_ai?")
        rows.append((sample.get("epoch", 1), f"{path}: sample {sample['id']}", sample))
    if not rows:
        raise UserError(f"{path}: no samples; logs that were written with --no-log-samples have none")
    found = Found(_PROGRAM)
    several, dataset = len({epoch for epoch, _, _ in rows}) > 1, str(about.get("task") or "")
    for epoch, where, sample in rows:
        turns, answer = _conversation(sample, where)
        if answer is None or not answer.strip():
            found.left_out["no answer in text" if not sample.get("error") else "ended in an error"] += 1
            continue
        prompt = template(turns) if template else conversation.joined(turns)
        name = f"{sample['id']}-epoch-{epoch}" if several else str(sample["id"])
        text = _after(prompt, answer)
        found.traces.append(Trace(full_id(name, dataset), dataset, prompt, text, _annotation(sample, where)))
    _check_unique([trace.id for trace in found.traces], path)
    if template is None:
        found.notes.append("prompts are the messages' texts; --model NAME writes them in that model's chat template")
    if not finished:
        found.notes.append("the log is of a run that didn't end: it has the samples that were done")
    if about.get("model"):
        found.notes.append(f"model: {about['model']}")
    return found


def _check_unique(names: Sequence[str], path: Path) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{path}: two samples have the id {twice[0]!r}; ids must be unique")


def _after(prompt: str, answer: str) -> str:
    """The answer as it goes on behind the prompt, which may have opened the thinking already."""
    opened = thinking.opening(prompt)
    return answer.lstrip().removeprefix(opened).removeprefix("\n") if opened else answer


def _conversation(sample: Mapping[str, Any], where: str) -> tuple[list[dict[str, str]], str | None]:
    """The turns in front of the last answer, and that answer."""
    messages = sample.get("messages") or []
    if not messages:
        given = sample.get("input")
        messages = [{"role": "user", "content": given}] if isinstance(given, str) else list(given or [])
        choices = (sample.get("output") or {}).get("choices") or []
        messages += [choice["message"] for choice in choices[:1] if isinstance(choice, dict) and "message" in choice]
    if not all(isinstance(each, dict) and isinstance(each.get("role"), str) for each in messages):
        raise UserError(f"{where}: messages without a role; is this a log of inspect_ai?")
    last = max((at for at, each in enumerate(messages) if each["role"] == "assistant"), default=None)
    front = messages[: len(messages) if last is None else last]
    attachments = sample.get("attachments") or {}
    turns = [{"role": each["role"], "content": _text(each, attachments, where)} for each in front]
    return turns, None if last is None else _text(messages[last], attachments, where)


def _text(message: Mapping[str, Any], attachments: Mapping[str, Any], where: str) -> str:
    """A message's text, with the thinking in front. Raises UserError for pictures and the like."""
    content = message.get("content", "")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise UserError(f"{where}: a message whose content is neither text nor parts")
    thoughts, texts = [], []
    for part in parts:
        if part.get("type") == "reasoning":
            if part.get("redacted"):
                raise UserError(f"{where}: its thinking is encrypted by the provider; such a trace can't be read")
            thoughts.append(_resolved(part.get("reasoning"), attachments, where))
        elif part.get("type") == "text":
            texts.append(_resolved(part.get("text"), attachments, where))
        else:
            raise UserError(f"{where}: a message with a part of type {part.get('type')!r}; only text can be read")
    said = "\n".join(texts)
    return thinking.joined("\n".join(thoughts), said) if any(thoughts) else said


def _resolved(value: Any, attachments: Mapping[str, Any], where: str) -> str:
    """A text, which may lie among the sample's attachments."""
    if isinstance(value, str) and value.startswith(_ATTACHMENT):
        value = attachments.get(value.removeprefix(_ATTACHMENT))
    if not isinstance(value, str):
        raise UserError(f"{where}: a text is missing, also among the sample's attachments")
    return value


def _annotation(sample: Mapping[str, Any], where: str) -> str | None:
    """The annotator's text, from the sample's metadata or a score's."""
    scores = sample.get("scores")
    holders = [sample, *(scores.values() if isinstance(scores, dict) else ())]
    data = [each.get("metadata") for each in holders if isinstance(each, dict)]
    counted = Counter(each["annotated"] for each in data if isinstance(each, dict) and each.get("annotated"))
    if len(counted) > 1:
        raise UserError(f"{where}: {len(counted)} annotations, in metadata and scores; keep one")
    found = next(iter(counted), None)
    if found is not None and not isinstance(found, str):
        raise UserError(f"{where}: metadata.annotated is no text")
    return found
