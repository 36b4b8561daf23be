"""What a recipe, a command line or a program says of a judge."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mixprec.evaluate.engines.base import Sampling
from mixprec.evaluate.engines.serverspec import ServerSpec


class JudgeSpec(ServerSpec):
    """A language model behind a server, which annotates traces."""

    model: str = Field(min_length=1, description="the judge, as the server names it")
    prompt: str | None = Field(None, description="a file to ask with instead of mixprec's prompt; {text} in it once")
    temperature: float = Field(0.1, ge=0, description="of the sampling; 0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="share of the probability that is drawn from")
    max_new_tokens: int = Field(8192, ge=1, description="longest answer, the judge's own thinking included")
    piece: int = Field(4000, ge=200, description="characters of a trace that are judged at once")
    attempts: int = Field(3, ge=1, description="times that a piece is asked for, until its answer can be used")
    timeout: float = Field(1800.0, gt=0, description="seconds for an answer")
    price_in: float | None = Field(None, ge=0, description="of a million tokens of prompts, to tell the cost")
    price_out: float | None = Field(None, ge=0, description="of a million tokens of answers")

    @property
    def sampling(self) -> Sampling:
        """How answers are drawn."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_p)

    @property
    def deciding(self) -> dict[str, Any]:
        """What answers depend on, but for the prompt: neither where the server is, nor how it is asked, nor prices."""
        names = {"model", "temperature", "top_p", "max_new_tokens", "piece", "attempts"}
        return self.model_dump(include=names)

    def cost(self, prompt_tokens: int, tokens: int) -> float | None:
        """In the prices' currency; None without prices."""
        if self.price_in is None and self.price_out is None:
            return None
        return ((self.price_in or 0) * prompt_tokens + (self.price_out or 0) * tokens) / 1e6
