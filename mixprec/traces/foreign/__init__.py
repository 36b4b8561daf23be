"""Traces and annotations that other programs wrote: Label Studio's exports, and logs of inspect_ai.

``read`` tells them apart by what is in the file, never by its name.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.traces.conversation import Turns
from mixprec.traces.foreign import inspect, labelstudio
from mixprec.traces.foreign.base import Found
from mixprec.traces.store import Trace

__all__ = ["Found", "Options", "read"]


class Options(NamedTuple):
    """``traces``: those that were labelled, where the file doesn't hold them whole. ``by``: whose annotations, where a
    task has several. ``text_key``: the key of a task's data that was labelled. ``template``: writes messages as the
    text that a model saw; None joins their texts."""

    traces: Sequence[Trace] = ()
    by: str | None = None
    text_key: str | None = None
    template: Callable[[Turns], str] | None = None


def read(path: Path, options: Options = Options()) -> Found:
    """What is in the file of another program.

    Raises UserError naming file and place for a file of no known program, and as the readers do.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if zipfile.is_zipfile(path):
        return inspect.read_archive(path, options.template)
    data: Any = artifacts.parse_json(artifacts.read_text(path), path, finite=False)
    if isinstance(data, dict) and "eval" in data and "status" in data:
        return inspect.read_log(data, path, options.template)
    if isinstance(data, list) and data and all(isinstance(task, dict) for task in data):
        found = labelstudio.read(data, path, options.traces, options.by, options.text_key)
        if found is not None:
            return found
    raise UserError(
        f"{path}: neither an export of Label Studio (JSON or JSON-MIN) nor a log of inspect_ai (.eval or .json); other "
        "files can be written as traces or spans (docs/spans.md)"
    )
