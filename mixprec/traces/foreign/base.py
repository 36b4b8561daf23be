"""What all readers of foreign files give."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from mixprec.traces.spans import AnnotatedTrace
from mixprec.traces.store import Trace


@dataclass(frozen=True)
class Found:
    """``program``: who wrote the file. ``annotated``: traces with spans; ``traces``: those without, with the
    annotator's text where the file has one. ``left_out``: what gave no trace, by reason. ``notes``: for the user."""

    program: str
    annotated: list[AnnotatedTrace] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
