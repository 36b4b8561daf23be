"""An output's two parts: the thinking, and what the model answers behind it."""

from __future__ import annotations

from typing import NamedTuple

CLOSE = "</think>"


class Sections(NamedTuple):
    """``answer`` is None where the thinking never ended; then ``thinking`` is the whole output."""

    thinking: str
    answer: str | None


def split(output: str) -> Sections:
    """Cut an output at its last ``</think>``."""
    thinking, close, answer = output.rpartition(CLOSE)
    return Sections(thinking, answer) if close else Sections(output, None)
