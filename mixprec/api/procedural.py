"""make_traces: annotated traces by a procedure, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mixprec.core import artifacts
from mixprec.core.arguments import typed
from mixprec.core.errors import UserError
from mixprec.results.spans import Traces
from mixprec.traces import procedural


@typed()
def make_traces(out: str | Path, *, count: int = 110, seed: int = 0, kinds: Sequence[str] = ()) -> Traces:
    """Write ``count`` annotated reasoning traces, made by a procedure: arithmetic, timetables, inference, facts.

    Behaviours are right by construction, and so are the answers. ``kinds``: only these, in turn; default all. The same
    arguments give the same file.

    Raises UserError for an unknown kind.
    """
    if count < 1:
        raise UserError(f"count: {count} traces; make 1 or more")
    made = procedural.traces(count, seed, tuple(kinds) or tuple(procedural.KINDS))
    path = Path(out)
    artifacts.write_jsonl(path, map(procedural.row, made))
    return Traces(path, count)
