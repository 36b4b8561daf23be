"""What is put in front of an answer, and the ways to write one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.evaluate.benchmarks import Question
from mixprec.evaluate.benchmarks.schema import Kind
from mixprec.evaluate.engines.templates import templated
from mixprec.evaluate.generations import parse
from mixprec.evaluate.spec import ProtocolSpec
from mixprec.traces import thinking

TRUTHS = ("True", "False", "Uncertain")
#: What stands in front of an answer where nothing else is said. Options hold more of the probability behind the first
#: two than behind the third.
STUBS: Mapping[Kind, str] = {
    "truth": "Therefore, the conclusion is",
    "letter": "The correct option is",
    "integer": "The final answer is",
    "words": "The final answer is",
}
#: What closes a thinking that the prompt opened, in front of the answer.
CLOSE = "</think>\n\n"


class Asked(NamedTuple):
    """``prefix``: all text in front of the answer. ``options``: answer -> the ways to write it; empty for benchmarks
    whose answers are open. ``gold``: the right answer; of open ones as text that goes on behind the prefix."""

    prefix: str
    options: Mapping[str, tuple[str, ...]]
    gold: str


def asked(question: Question, protocol: ProtocolSpec, tokenizer: Any, thought: str | None) -> Asked:
    """A question up to its answer. ``thought``: a thinking about it, None for none.

    Raises UserError as ``templated`` does, for chat prompts.
    """
    if protocol.prompts == "chat":
        prompt = templated(tokenizer, [{"role": "user", "content": question.message}], protocol.template)
        opened = thinking.opening(prompt, protocol.tags) is not None
    else:
        prompt, opened = question.prompt, True
    if thought is not None and not opened:
        prompt, opened = f"{prompt}<think>\n", True
    between = f"{thought.strip()}\n{CLOSE}" if thought else f"\n{CLOSE}" if opened else ""
    prefix = f"{prompt}{between}{protocol.stub or STUBS[question.kind]}"
    found = options(question)
    return Asked(prefix, found, question.answer if found else f" {question.answer}")


def options(question: Question) -> dict[str, tuple[str, ...]]:
    """The answers that a question has, each with the ways to write it that are counted; empty where it has none."""
    if question.kind == "truth":
        return {truth: (f" {truth}", f" {truth.lower()}") for truth in TRUTHS}
    if question.kind == "letter":
        letters = question.extra["options"]
        return {each: tuple(f" {text}" for text in (f"({each})", each, f"({each.lower()})")) for each in letters}
    return {}


def _thought(output: str, opened: bool) -> str:
    """What an output thinks, without the tag that ends it; all of it where it never came to an end."""
    part = thinking.parts(output, opened)
    if part.state != "closed":
        return part.answer
    return re.sub(rf"{part.tag.close}\s*\Z", "", part.thinking) if part.tag else part.thinking


def outputs_of(folder: Path, benchmark: str) -> Path:
    """The file of outputs on a benchmark that ``mixprec bench`` left in a folder. Raises UserError for none."""
    path = folder / f"{benchmark}.jsonl"
    if not path.is_file():
        raise UserError(f"after: {path} is not there; give a folder of outputs that mixprec bench made of {benchmark}")
    return path


def thoughts(folder: Path, benchmark: str, questions: Mapping[str, Question]) -> dict[str, str]:
    """Question -> what was thought about it in outputs of ``mixprec bench``; of several passes the first one.

    Raises UserError where the folder has no outputs of this benchmark, or not of all of its questions.
    """
    path = outputs_of(folder, benchmark)
    found: dict[str, tuple[int, str]] = {}
    for number, row in enumerate(artifacts.read_jsonl(path, sealed=True), 1):
        key, record = parse(row, f"{path}:{number}")
        if key.id not in found or key.seed < found[key.id][0]:
            found[key.id] = (key.seed, _thought(record.output, row.get("prompts") == "paper"))
    missing = [name for name in questions if name not in found]
    if missing:
        raise UserError(f"after: {path} has no output of question {missing[0]!r}, and of {len(missing) - 1} more")
    return {name: found[name][1] for name in questions}
