"""What one stage takes."""

from __future__ import annotations

from typing import NamedTuple

from mixprec.pipeline.rates import Rates
from mixprec.pipeline.traffic import Traffic


class Stage(NamedTuple):
    """``work``: what is done, in words. ``seconds`` of one core; None where that isn't known (a GPU, another engine).
    ``memory``: bytes; ``disk``: bytes that stay there; ``traffic``: those that are read and written. ``most``: that
    ``seconds`` are of outputs which all run to their limit, and those that end by themselves take fewer."""

    name: str
    work: str
    seconds: float | None
    memory: int
    disk: int = 0
    traffic: Traffic = Traffic()
    most: bool = False


def decoding(tokens: int, parameters: int, batch: int, rates: Rates) -> float:
    """Seconds of so many new tokens, ``batch`` rows at once."""
    return tokens * parameters * (rates.step / batch + rates.row)
