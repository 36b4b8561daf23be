"""All that judges said, on disk: a line for each answer as soon as it is there.

A line is found by what was asked: judge, message, sampling and attempt. So a killed run goes on where it was, the same
text is paid for once, and what another prompt or judge said stays beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, get_args

from mixprec.core import artifacts, seals
from mixprec.core.errors import UserError
from mixprec.evaluate.engines.base import Finish, Generation, Sampling

#: What every line begins with.
_BEGINS = b'{"asked": '


class Answer(NamedTuple):
    """What a judge said; tokens are None where its server didn't count."""

    text: str
    finish: Finish
    tokens: int | None
    prompt_tokens: int | None


def asked(model: str, message: str, sampling: Sampling, attempt: int) -> str:
    """What an answer is found by."""
    return artifacts.fingerprint("judge", model, message, asdict(sampling), attempt)


class Answers:
    """The answers in a file, which need not be there yet; None keeps them in memory alone.

    Raises UserError naming file and line where a line is none of ours or was changed. Half a line at the end, which a
    kill left, is taken away.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._known: dict[str, Answer] = {}
        if path is not None and path.is_file() and path.stat().st_size:
            artifacts.mend_lines(path, _BEGINS)
            for number, row in enumerate(artifacts.read_jsonl(path, sealed=True), 1):
                self._take(row, f"{path}:{number}")

    def _take(self, row: Mapping[str, Any], where: str) -> None:
        kinds = {"asked": str, "answer": str, "tokens": int | None, "prompt_tokens": int | None}
        wrong = [key for key, kind in kinds.items() if not isinstance(row.get(key), kind)]
        if wrong or row.get("finish") not in get_args(Finish):
            raise UserError(
                f"{where}: key {(wrong or ['finish'])[0]!r} is missing or wrong; this is no judge's answer: give "
                "another file, or remove the line"
            )
        seals.opened(row, where)
        self._known[row["asked"]] = Answer(row["answer"], row["finish"], row["tokens"], row["prompt_tokens"])

    def get(self, key: str) -> Answer | None:
        """What was answered, None where that wasn't asked yet."""
        return self._known.get(key)

    def add(self, key: str, made: Generation, about: Mapping[str, Any]) -> None:
        """Keep an answer, on disk before this returns. ``about``: what a reader wants to know of it."""
        answer = Answer(made.output, made.finish, made.tokens, made.prompt_tokens)
        self._known[key] = answer
        if self.path is not None:
            said = answer._asdict()
            row = {"asked": key, **about, "answer": said.pop("text"), **said}  # begins as _BEGINS says
            artifacts.append_row(self.path, row)
