"""Traces on disk as they are made: one line each, which says what made it, so that no file mixes two origins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.traces.store import Trace, load, local_id

#: What every row that Recorder writes begins with.
_ROW = b'{"dataset": '
#: Its key that says what made the trace. ``model`` is for the reader: the identity alone tells models apart.
_MADE, _NAME, _ASKED = "made", "model", "asked"
_REMEDY = "give another --out, or the settings that this file was made with"


class Making(NamedTuple):
    """What all traces of one file have in common. How many prompts go at once changes nothing but rounding.

    ``template``: arguments of the chat template; files of earlier versions don't have it, and none were given then.
    """

    model: str
    identity: str
    dtype: str
    chat_template: bool
    seed: int
    max_new_tokens: int
    temperature: float
    top_p: float
    template: Mapping[str, Any] = {}


class Recorder:
    """Appends traces to a file one by one, so that a killed run loses none and continues behind the last.

    ``asked``: trace id -> the prompt's text, or the conversation, as it was given. ``done``: ids of the traces that are
    there; ``others``: those of them that nobody asked for.

    Raises UserError where the file holds something else than traces, or traces that were made from another prompt, by
    another model or with other settings, or that don't say how they were made.
    """

    def __init__(self, path: Path, making: Making, asked: Mapping[str, Any]) -> None:
        self._path, self._making, self._asked = path, making, asked
        self.done: set[str] = set()
        if path.is_file() and path.stat().st_size:
            artifacts.mend_lines(path, _ROW)
            if path.stat().st_size:
                self._read()

    @property
    def others(self) -> set[str]:
        return self.done - self._asked.keys()

    def _read(self) -> None:
        # Of a file that is empty but for half a line nothing is left, and nothing is wrong.
        for trace, row in zip(load(str(self._path)), artifacts.read_jsonl(self._path), strict=True):
            self._check(trace.id, row.get(_MADE))
            self.done.add(trace.id)

    def _check(self, name: str, made: object) -> None:
        where = f"{self._path}: trace {name!r}"
        if not isinstance(made, dict):
            raise UserError(
                f"{where} doesn't say what made it: an earlier mixprec, or another program; new traces can't be put "
                "behind it: give another --out"
            )
        for key, wanted in self._making._asdict().items():
            found = made.get(key, Making._field_defaults.get(key))
            if key != _NAME and found != wanted:
                if key == "identity":
                    found, wanted = f"{made.get(_NAME)} ({found})", f"{self._making.model} ({wanted})"
                raise UserError(f"{where} was made with {key} {found!r}, this run has {wanted!r}; {_REMEDY}")
        if name in self._asked and made.get(_ASKED) != artifacts.fingerprint(self._asked[name]):
            raise UserError(
                f"{where} was made from another text than its prompt has now; give another --out, or remove this "
                "line, and the trace is made again"
            )

    def write(self, trace: Trace) -> None:
        """Append one trace, of a prompt that was asked for."""
        row: dict[str, Any] = {"dataset": trace.dataset, "id": local_id(trace.id, trace.dataset)}  # as _ROW says
        row |= {"prompt": trace.prompt, "output": trace.output}
        # The row's own prompt is the text in the model's template, where one is used.
        row[_MADE] = self._making._asdict() | {_ASKED: artifacts.fingerprint(self._asked[trace.id])}
        artifacts.append_row(self._path, row)
        self.done.add(trace.id)
