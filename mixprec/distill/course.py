"""What happened while a student learned."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Course:
    """``objective``: what losses are, in nats per token that the teacher wrote. ``validation``: (step, loss), the first
    before any step; ``training``: (step, mean loss of the step). ``written``: loss of the weights as the checkpoint
    has them."""

    objective: str
    steps: int = 0
    validation: list[tuple[int, float]] = field(default_factory=list)
    training: list[tuple[int, float]] = field(default_factory=list)
    written: float | None = None

    @property
    def before(self) -> float:
        """Loss on validation of the student as it came."""
        return self.validation[0][1]

    @property
    def best(self) -> tuple[int, float]:
        """The step with the least loss on validation; 0 is the start."""
        return min(self.validation, key=lambda found: found[1])

    @property
    def told(self) -> dict[str, Any]:
        """JSON of it, as it is read back."""
        step, after = self.best
        curves = {name: [list(point) for point in getattr(self, name)] for name in ("validation", "training")}
        return {"before": self.before, "after": after, "kept_step": step, **vars(self), **curves}


@dataclass
class Clock:
    """Tokens that went through training steps of this process's call, and the seconds that they took."""

    tokens: int = 0
    seconds: float = 0.0
    _since: float | None = None

    def begin(self) -> None:
        """A step begins."""
        self._since = time.monotonic()

    def end(self, tokens: int) -> None:
        """A step of so many tokens has ended."""
        if self._since is not None:
            self.tokens, self.seconds = self.tokens + tokens, self.seconds + time.monotonic() - self._since

    @property
    def speed(self) -> float | None:
        """Tokens per second; None where no step was made."""
        return self.tokens / self.seconds if self.seconds else None
