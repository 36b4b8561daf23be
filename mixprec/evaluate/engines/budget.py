"""A thinking budget: so many tokens of thinking, then the tag that ends it is written in the model's place.

Tokens are counted behind the tag that opens the thinking, which the prompt ends with or the output begins with. What is
written counts as new tokens, too; then the model goes on by itself. A thinking that begins anywhere else has no limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mixprec.core.errors import UserError
from mixprec.traces import thinking

#: An output begins with a thinking where its tag ends within so many tokens.
OPENING = 16


class Budget(NamedTuple):
    """``tokens``: the longest thinking; ``tags``: what opens and closes one."""

    tokens: int
    tags: tuple[thinking.Tag, ...] = thinking.TAGS


class Watch:
    """One output on its way. ``decode``, ``encode``: of the model's tokenizer, pieces as they are; ``key``: of the
    request, for messages."""

    def __init__(
        self,
        budget: Budget,
        prompt: str,
        decode: Callable[[Sequence[int]], str],
        encode: Callable[[str], Sequence[int]],
        key: str,
    ) -> None:
        self.budget, self._decode, self._encode, self._key = budget, decode, encode, key
        self._tag = thinking.opened_by(prompt, budget.tags)
        self._opened = self._tag is not None
        #: Where the thinking begins, in tokens; None: it isn't known yet.
        self._start = 0 if self._opened else None
        #: Whether the end of the thinking was written here.
        self.cut = False
        self._decided = False

    @property
    def most(self) -> int:
        """New tokens after which it is known whether the thinking is too long."""
        return self.budget.tokens + (0 if self._opened else OPENING)

    def after(self, new: Sequence[int]) -> Sequence[int]:
        """What has to follow the tokens ``new`` where their thinking is as long as it may be; else nothing. To be
        called behind every token."""
        if self._decided:
            return ()
        if self._start is None:
            self._tag = thinking.opened_by(self._decode(new), self.budget.tags)
            if self._tag is not None:
                self._start = len(new)
            elif len(new) >= OPENING:
                self._decided = True
        if self._start is None or len(new) - self._start < self.budget.tokens:
            return ()
        self._decided = True
        text, tags = self._decode(new), self.budget.tags
        if thinking.parts(text, self._opened, tags).state != "open":
            return ()
        self.cut, end = True, self._end
        # The model may have begun to write the tag itself.
        begun = next((count for count in range(len(end) - 1, 1, -1) if text.endswith(end[:count])), 0)
        return self._encode(f"{end[begun:]}\n\n" if begun else f"\n{end}\n\n")

    @property
    def _end(self) -> str:
        assert self._tag is not None  # a thinking began
        if not self._tag.ends:
            raise UserError(
                f"{self._key!r}: thinking_budget: what ends a thinking in {self._tag.name} is not one tag that can be "
                "written in the model's place; leave thinking_budget out"
            )
        return self._tag.ends
