"""What one stage takes, and rates that several have in common."""

from __future__ import annotations

from typing import NamedTuple

from mixprec.pipeline.traffic import Traffic

#: Seconds of a step of decoding for each parameter, and for each parameter and row.
_STEP_SECONDS, _ROW_SECONDS = 8.0e-10, 1.2e-10


class Stage(NamedTuple):
    """``work``: what is done, in words. ``seconds`` of one core; None where that isn't known (a GPU, another engine).
    ``memory``: bytes; ``disk``: bytes that stay there; ``traffic``: those that are read and written."""

    name: str
    work: str
    seconds: float | None
    memory: int
    disk: int = 0
    traffic: Traffic = Traffic()


def decoding(tokens: int, parameters: int, batch: int) -> float:
    """Seconds of so many new tokens, ``batch`` rows at once."""
    return tokens * parameters * (_STEP_SECONDS / batch + _ROW_SECONDS)
