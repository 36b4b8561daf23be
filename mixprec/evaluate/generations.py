"""Generations on disk: JSON lines, one appended as soon as it is there, each saying what it was made from.

A run that was killed continues behind the last line; a file that was made from something else is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from mixprec.core import artifacts, seals
from mixprec.core.errors import UserError
from mixprec.evaluate.engines.base import Finish, Generation, Sampling

#: What every line begins with, and the keys that it has besides those of Made.
_BEGINS = b'{"benchmark": '


class Key(NamedTuple):
    """Which generation: question and seed."""

    id: str
    seed: int


class Origin(NamedTuple):
    """What generations of one file have in common.

    ``rows``: digest of the benchmark's questions. ``model``: identity of its weights. ``prompts``: paper or chat.
    ``template``, ``thinking_budget``: where there are any. How many rows an engine batches is not part of it: it
    changes nothing but rounding.
    """

    benchmark: str
    rows: str
    model: str
    prompts: str
    sampling: Sampling
    template: Mapping[str, Any] = {}
    thinking_budget: int | None = None

    @property
    def described(self) -> dict[str, Any]:
        said = {name: value for name, value in self._asdict().items() if value or name not in self._field_defaults}
        return said | {"sampling": asdict(self.sampling)}


class Record(NamedTuple):
    """One output; ``tokens`` is None where a server didn't count, ``finish`` where nobody wrote down how it ended.
    ``thinking_cut``: a budget ended the thinking."""

    output: str
    finish: Finish | None
    tokens: int | None
    prompt_tokens: int | None
    thinking_cut: bool = False


class GenerationFile:
    """The generations of one model on one benchmark. ``done`` has those that are there.

    Raises UserError naming file, line and key where the file was made from another revision of the benchmark, other
    settings or another model, a generation stands twice, or a line is none. Half a line at the end is taken away.
    """

    def __init__(self, path: Path, origin: Origin) -> None:
        self.path = path
        self._origin = origin
        self.done: dict[Key, Record] = {}
        if path.is_file() and path.stat().st_size:
            artifacts.mend_lines(path, _BEGINS)
            for number, row in enumerate(artifacts.read_jsonl(path, sealed=True), 1):
                self._take(row, f"{path}:{number}")

    def _take(self, row: dict[str, Any], where: str) -> None:
        described = self._origin.described
        for name in self._origin._fields:
            wanted = described.get(name)
            if row.get(name) != wanted:
                raise UserError(
                    f"{where}: {name} is {row.get(name)!r}, this run has {wanted!r}; its generations can't be put "
                    "together with these: give another --out, or the settings that they were made with"
                )
        key, record = parse(row, where)
        seals.opened(row, where)  # last, as what else is wrong with a line can be told with more words
        if key in self.done:
            raise UserError(f"{where}: question {key.id!r} with seed {key.seed} stands twice; remove one of the lines")
        self.done[key] = record

    def add(self, key: Key, made: Generation, engine: Mapping[str, Any]) -> None:
        """Append one generation and flush it to disk. ``engine``: what made it, as it describes itself."""
        record = Record(made.output, made.finish, made.tokens, made.prompt_tokens, made.thinking_cut)
        row = {"benchmark": self._origin.benchmark, "id": key.id, "seed": key.seed}  # begins as _BEGINS says
        row |= self._origin.described | {"engine": dict(engine)} | record._asdict()
        if not record.thinking_cut:
            del row["thinking_cut"]
        artifacts.append_row(self.path, row)
        self.done[key] = record

    def left(self, keys: Iterable[Key]) -> list[Key]:
        """Those that are not there yet, in order."""
        return [key for key in keys if key not in self.done]


def parse(row: Mapping[str, Any], where: str) -> tuple[Key, Record]:
    """A line's key and record. Raises UserError where it lacks one of their values or has another type there."""
    kinds = {"id": str, "seed": int, "output": str, "finish": str}
    for name, kind in kinds.items():
        if not isinstance(row.get(name), kind) or isinstance(row[name], bool):
            raise UserError(f"{where}: key {name!r} is missing or no {kind.__name__}; remove the line and run again")
    if row["finish"] not in ("stop", "length"):
        raise UserError(f"{where}: finish is {row['finish']!r}, not stop or length; remove the line and run again")
    counts = (row.get("tokens"), row.get("prompt_tokens"))
    if any(count is not None and not isinstance(count, int) for count in counts):
        raise UserError(f"{where}: tokens and prompt_tokens are numbers or null; remove the line and run again")
    return Key(row["id"], row["seed"]), Record(row["output"], row["finish"], *counts, row.get("thinking_cut") is True)
