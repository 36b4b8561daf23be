"""What is told about each sentence of a reasoning: words, shape, place, what is new in it, and its neighbours.

Names of features: words and pairs of words as they are, ``^`` in front of a sentence's first ones, ``$`` of its last
ones, ``@`` of classes of words, ``#`` of all that isn't words; ``<`` and ``>`` of what stands in the sentence before
and behind.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from mixprec.traces.learned.words import Words, read
from mixprec.traces.sentences import Sentence


class _Alone(NamedTuple):
    """What a sentence is wherever it stands: its words, its features, and those that it gives to its neighbours."""

    words: Words
    own: list[int]
    to_next: list[int]
    to_last: list[int]


class Features:
    """Sentences as numbers of features. ``names``: those that are known; with none, every one is taken and added."""

    def __init__(self, names: Iterable[str] | None = None) -> None:
        self._index = {name: at for at, name in enumerate(names or ())}
        self._grows = names is None
        # Traces repeat themselves ("Wait, no."), and broken ones do so for pages.
        self._alone = functools.lru_cache(maxsize=16384)(self._read)

    @property
    def names(self) -> list[str]:
        """Every feature's name, in the order of their numbers."""
        return list(self._index)

    def rows(self, prompt: str, sentences: Sequence[Sentence]) -> list[list[int]]:
        """The features of every sentence of a reasoning, all of value 1."""
        read_alone = [self._alone(sentence.text) for sentence in sentences]
        genre = _genre([each.words for each in read_alone])
        asked = read(prompt)
        prompted = asked.names | asked.content
        told: set[str] = set()
        rows = []
        for at, (sentence, each) in enumerate(zip(sentences, read_alone, strict=True)):
            names = ["#bias", f"#genre {genre}", *_shape(sentence.text, each.words, genre), *_place(at, sentences)]
            row = each.own + self._numbers([*names, *_news(each.words, prompted, told, genre)])
            if at:
                row += read_alone[at - 1].to_next
            if at + 1 < len(sentences):
                row += read_alone[at + 1].to_last
            rows.append(row)
            told |= each.words.names | each.words.content
        return rows

    def _read(self, text: str) -> _Alone:
        words = read(text)
        return _Alone(
            words, *(self._numbers(names) for names in (_spoken(words), _beside("<", words), _beside(">", words)))
        )

    def _numbers(self, names: Iterable[str]) -> list[int]:
        index = self._index
        if self._grows:
            return [index.setdefault(name, len(index)) for name in names]
        return [index[name] for name in names if name in index]


def _genre(words: Sequence[Words]) -> str:
    """Mathematics, or facts with names, or else plain reasoning: by the whole trace."""
    signs = sum(each.signs > 1 for each in words) / len(words)
    names = sum(bool(each.names) for each in words) / len(words)
    return "signs" if signs > 0.25 else "names" if names > 0.35 else "plain"


def _spoken(each: Words) -> list[str]:
    """Words and pairs of words, once each; the first ones in their places; classes."""
    tokens = each.tokens
    found = [*dict.fromkeys(tokens), *dict.fromkeys([f"{one} {two}" for one, two in pairwise(tokens)])]
    opening = [token for token in tokens[:6] if token not in ",."][:4]
    found += ["^" + " ".join(opening[:length]) for length in range(1, len(opening) + 1)]
    found.append("$" + " ".join(tokens[-2:]))
    return found + ["@" + name for name in sorted(each.classes)]


def _shape(text: str, each: Words, genre: str) -> list[str]:
    count = len(each.tokens)
    long = "1" if count < 4 else "2" if count < 8 else "3" if count < 14 else "4" if count < 24 else "5"
    ask = text.rstrip("\"'”’)*").endswith("?")
    quiet = not each.classes - {"IS", "WAS", "I"}
    names, signs = len(each.names), each.signs
    return [
        "#long " + long,
        f"#ask {ask} {genre}",
        f"#ask {ask} long {long}",
        f"#numbers {min(each.numbers, 3)} {genre}",
        f"#names {min(names, 3)} {genre}",
        f"#years {min(each.years, 2)} names {min(names, 2)}",
        f"#signs {min(signs, 3)} {genre}",
        f"#quiet {quiet} {genre} names {min(names, 2)} signs {min(signs, 1)}",
        f"#self {'I' in each.classes} ask {ask} maybe {'MAYBE' in each.classes}",
    ]


def _place(at: int, sentences: Sequence[Sentence]) -> list[str]:
    opens, last = sentences[at].opens, at + 1 == len(sentences)
    alone = opens and (last or sentences[at + 1].opens)
    found = [f"#number {min(at, 6)}", f"#part {5 * at // len(sentences)}", f"#opens {opens} alone {alone}"]
    return [*found, "#last"] if last else found


def _news(each: Words, prompted: set[str] | frozenset[str], told: set[str], genre: str) -> list[str]:
    """How much of the sentence is in the prompt, how much was told before, how much is new."""
    matter = each.names | each.content
    if not matter:
        return ["#empty"]
    fresh = matter - told - prompted
    old, given, new = (_third(len(part) / len(matter)) for part in (matter & told, matter & prompted, fresh))
    return [
        f"#old {old} {genre}",
        f"#given {given} {genre}",
        f"#given {given} old {old}",
        f"#fresh {new} {genre} names {bool(each.names & fresh)}",
        f"#fresh {new} quiet {not each.classes - {'IS', 'WAS'}}",
    ]


def _third(share: float) -> int:
    return 0 if share < 0.2 else 1 if share < 0.6 else 2


def _beside(where: str, other: Words) -> list[str]:
    tokens = other.tokens or [""]
    return [f"{where}^{tokens[0]}", f"{where}${tokens[-1]}"]
