"""How many traces, spans and tokens a recipe's files hold. Tokens are counted by the model's tokenizer where it is on
this machine and the text is short, else estimated from a part of it; no weights, no network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Bytes of a token, where no tokenizer is at hand: 2.8 in the paper's traces, 3.4 in ours, 4 in plain English.
BYTES_A_TOKEN = 3.5
#: Bytes that are encoded to estimate a longer text, and up to which a text is counted.
_SAMPLE = 1 << 17


class Amount(NamedTuple):
    """Tokens of each text of a source; ``exact``: counted, not estimated."""

    tokens: tuple[int, ...]
    exact: bool

    @property
    def total(self) -> int:
        """Of all texts."""
        return sum(self.tokens)


@dataclass(frozen=True)
class Held:
    """What a source holds. ``key``: where the recipe names it. ``spans``: of annotated traces, by behaviour, of the
    behaviours that are scored, empty where a judge finds them; ``inside``: characters in these, at most."""

    key: str
    source: str
    texts: tuple[str, ...]
    spans: Counter[str] = field(default_factory=Counter)
    inside: int = 0


@dataclass(frozen=True)
class Counting:
    """Counts by ``tokenizer``, or by bytes where it is None; ``head``: tokens that every text begins with."""

    tokenizer: Tokenizer | None = None
    head: int = 1

    def amount(self, texts: Sequence[str], exactly: bool = False) -> Amount:
        """Tokens of each text, without those in front; ``exactly``: however long they are."""
        sizes = [len(text.encode()) for text in texts]
        if self.tokenizer is None:
            return Amount(tuple(round(size / BYTES_A_TOKEN) for size in sizes), False)
        if exactly or sum(sizes) <= _SAMPLE:
            return Amount(tuple(self._count(text) for text in texts), True)
        seen, counted = 0, 0
        for text in texts:
            part = text[: _SAMPLE - seen]
            seen, counted = seen + len(part.encode()), counted + self._count(part)
            if seen >= _SAMPLE:
                break
        return Amount(tuple(round(size * counted / seen) for size in sizes), False)

    def _count(self, text: str) -> int:
        assert self.tokenizer is not None
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)


def counting(folder: Path | None) -> Counting:
    """How texts are counted for the model in ``folder``; by bytes where that is None or has no tokenizer.json."""
    path = folder / "tokenizer.json" if folder else None
    if path is None or not path.is_file():
        return Counting()
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        head = len(tokenizer.encode("a").ids) - len(tokenizer.encode("a", add_special_tokens=False).ids)
    except Exception:  # a broken file breaks it in many ways; who loads the model says what is wrong
        return Counting()
    return Counting(tokenizer, max(head, 1))
