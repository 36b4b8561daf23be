"""What every engine takes and gives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from mixprec.evaluate.engines.budget import Budget
from mixprec.traces.conversation import Turns

#: Why a generation ended: the model's own end, or the limit of new tokens (or of the context). ``withheld``: the
#: server's filter let nothing through, where the engine was told that this is an answer.
Finish = Literal["stop", "length", "withheld"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; the paper's protocol by default (Appendix D). Greedy at ``temperature`` 0."""

    max_new_tokens: int = 32_768
    temperature: float = 0.6
    top_p: float = 0.95


class Request(NamedTuple):
    """A prompt to continue. ``key`` is unique among requests; ``seed`` alone decides its random numbers.

    ``chat``: the prompt is the user's turn in the model's chat template, else it goes in as it is. ``messages``: a
    whole conversation in its place. ``template``: arguments of the template, as ``enable_thinking``. ``budget``: of the
    thinking, which not every engine can keep.
    """

    key: str
    prompt: str
    seed: int
    chat: bool = False
    messages: Turns = ()
    template: Mapping[str, Any] = {}
    budget: Budget | None = None

    @property
    def turns(self) -> Turns:
        """What goes into the chat template."""
        return self.messages or ({"role": "user", "content": self.prompt},)


class Generation(NamedTuple):
    """What was written behind a request's prompt, without the token that ended it.

    ``prompt``: the text that the model saw, where the engine made it from a template. ``tokens`` and ``prompt_tokens``
    are None where a server doesn't count them. ``thinking_cut``: the thinking was ended by its budget.
    """

    key: str
    output: str
    finish: Finish
    tokens: int | None
    prompt_tokens: int | None
    prompt: str
    thinking_cut: bool = False


#: Takes how many new tokens there are, of all outputs together.
OnTokens = Callable[[int], None]


def nothing(_: int) -> None:
    """For those who don't watch."""


class Engine(Protocol):
    """Generates; ``described`` says by what, for provenance."""

    @property
    def described(self) -> dict[str, Any]: ...

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, on_tokens: OnTokens = nothing
    ) -> Iterator[Generation]:
        """Yield one generation per request as soon as it is done, in any order.

        An engine that sees tokens before their output is done calls ``on_tokens`` with how many came.

        Raises UserError for a prompt that fills the context, a server that stays away, a GPU that is full.
        """
        ...


def derived_seed(seed: int, name: str) -> int:
    """63 bits that differ for every seed and name; Python's own hash differs between processes."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 1
