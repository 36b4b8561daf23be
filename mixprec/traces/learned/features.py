"""What is told about each sentence of a reasoning: words, shape, place, what is new in it, and its neighbours.

Names of features: words and pairs of words as they are, ``^`` in front of a sentence's first ones, ``$`` of its last
ones, ``@`` of classes of words, ``#`` of all that isn't words; ``<`` and ``>`` of what stands in the sentence before
and behind.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from itertools import chain, combinations, pairwise
from typing import NamedTuple

from mixprec.traces.learned.words import Words, read
from mixprec.traces.sentences import Sentence

#: The feature that every sentence has.
BIAS = "#bias"


class _Shape(NamedTuple):
    """What is counted of a sentence: few values, so that sentences share them."""

    long: int
    ask: bool
    numbers: int
    names: int
    years: int
    signs: int
    quiet: bool
    self: bool
    maybe: bool


class _Place(NamedTuple):
    """Where a sentence stands: its number up to 6, the fifth of the trace, and whether it is a paragraph's first, only
    sentence, or the last of all."""

    number: int
    part: int
    opens: bool
    alone: bool
    last: bool


class _News(NamedTuple):
    """How much of a sentence was told before, is in the prompt, and is new, in thirds; whether new names are in it."""

    old: int
    given: int
    fresh: int
    names: bool
    still: bool


class _Alone(NamedTuple):
    """What a sentence is wherever it stands: its words, its features, and those that it gives to its neighbours."""

    words: Words
    shape: _Shape
    own: tuple[int, ...]
    to_next: tuple[int, ...]
    to_last: tuple[int, ...]


class Features:
    """Sentences as numbers of features. ``names``: those that are known; with none, every one is taken and added."""

    def __init__(self, names: Iterable[str] | None = None) -> None:
        self._index = {name: at for at, name in enumerate(names or ())}
        self._grows = names is None
        # Pairs of words are found as pairs: to join each pair of a text first takes longer than all else here.
        self._pairs = {tuple(name.split(" ")): at for name, at in self._index.items() if " " in name}
        # Traces repeat themselves ("Wait, no."), and broken ones do so for pages.
        self._alone = functools.lru_cache(maxsize=16384)(self._read)
        self._shared = functools.lru_cache(maxsize=65536)(self._read_shared)

    @property
    def names(self) -> list[str]:
        """Every feature's name, in the order of their numbers."""
        return list(self._index)

    def rows(self, prompt: str, sentences: Sequence[Sentence]) -> list[tuple[int, ...]]:
        """The features of every sentence of a reasoning, all of value 1."""
        read_alone = [self._alone(sentence.text) for sentence in sentences]
        genre = _genre([each.words for each in read_alone])
        asked = read(prompt)
        prompted = asked.names | asked.content
        told: set[str] = set()
        rows = []
        for at, each in enumerate(read_alone):
            matter = each.words.names | each.words.content
            news = _news(each.words, matter, prompted, told)
            parts = [each.own, self._shared(each.shape, genre), self._shared(_place(at, sentences), "")]
            parts.append(self._shared(news, genre))
            if at:
                parts.append(read_alone[at - 1].to_next)
            if at + 1 < len(sentences):
                parts.append(read_alone[at + 1].to_last)
            rows.append(tuple(chain.from_iterable(parts)))
            told |= matter
        return rows

    def _read(self, text: str) -> _Alone:
        words = read(text)
        beside = (self._numbers(_beside(where, words)) + self._shared(words.classes, where) for where in "<>")
        return _Alone(words, _shape(text, words), self._spoken(words), *beside)

    def _read_shared(self, found: _Shape | _Place | _News | frozenset[str] | None, about: str) -> tuple[int, ...]:
        """The features of what sentences share, classes of words among it; a sentence without matter has no news.

        ``about``: the genre for what depends on it, of classes ``<`` or ``>`` for those of a neighbour, else empty. It
        keeps a place and news of the same numbers apart, which as tuples are equal.
        """
        if found is None:
            return self._numbers(["#empty"])
        if isinstance(found, frozenset):
            return self._numbers(_class_names(found, about))
        if isinstance(found, _Shape):
            return self._numbers(_shape_names(found, about))
        return self._numbers(_place_names(found) if isinstance(found, _Place) else _news_names(found, about))

    def _spoken(self, each: Words) -> tuple[int, ...]:
        """Words and pairs of words, once each; the first ones in their places; classes."""
        tokens = each.tokens
        opening = [token for token in tokens[:6] if token not in ",."][:4]
        placed = ["^" + " ".join(opening[:length]) for length in range(1, len(opening) + 1)]
        placed.append("$" + " ".join(tokens[-2:]))
        if self._grows:
            pairs = self._numbers(dict.fromkeys(f"{one} {two}" for one, two in pairwise(tokens)))
        else:
            known = self._pairs
            pairs = tuple([known[pair] for pair in dict.fromkeys(pairwise(tokens)) if pair in known])
        return self._numbers(dict.fromkeys(tokens)) + pairs + self._numbers(placed) + self._shared(each.classes, "")

    def _numbers(self, names: Iterable[str]) -> tuple[int, ...]:
        index = self._index
        if self._grows:
            return tuple([index.setdefault(name, len(index)) for name in names])
        return tuple([index[name] for name in names if name in index])


def _genre(words: Sequence[Words]) -> str:
    """Mathematics, or facts with names, or else plain reasoning: by the whole trace."""
    signs = sum(each.signs > 1 for each in words) / len(words)
    names = sum(bool(each.names) for each in words) / len(words)
    return "signs" if signs > 0.25 else "names" if names > 0.35 else "plain"


def _shape(text: str, each: Words) -> _Shape:
    count = len(each.tokens)
    long = 1 if count < 4 else 2 if count < 8 else 3 if count < 14 else 4 if count < 24 else 5
    return _Shape(
        long,
        text.rstrip("\"'”’)*").endswith("?"),
        min(each.numbers, 3),
        min(len(each.names), 3),
        min(each.years, 2),
        min(each.signs, 3),
        not each.classes - {"IS", "WAS", "I"},
        "I" in each.classes,
        "MAYBE" in each.classes,
    )


def _shape_names(shape: _Shape, genre: str) -> list[str]:
    names = min(shape.names, 2)
    return [
        f"#long {shape.long}",
        f"#ask {shape.ask} {genre}",
        f"#ask {shape.ask} long {shape.long}",
        f"#numbers {shape.numbers} {genre}",
        f"#names {shape.names} {genre}",
        f"#years {shape.years} names {names}",
        f"#signs {shape.signs} {genre}",
        f"#quiet {shape.quiet} {genre} names {names} signs {min(shape.signs, 1)}",
        f"#self {shape.self} ask {shape.ask} maybe {shape.maybe}",
        f"#bias {genre}",
    ]


def _class_names(classes: frozenset[str], where: str) -> list[str]:
    """Classes of words; of the sentence itself also which two are met together."""
    found = sorted(classes)
    names = [f"{where}@{name}" for name in found]
    return names if where else names + [f"@{one}@{two}" for one, two in combinations(found, 2)]


def _place(at: int, sentences: Sequence[Sentence]) -> _Place:
    opens, last = sentences[at].opens, at + 1 == len(sentences)
    return _Place(min(at, 6), 5 * at // len(sentences), opens, opens and (last or sentences[at + 1].opens), last)


def _place_names(place: _Place) -> list[str]:
    found = [BIAS, f"#number {place.number}", f"#part {place.part}", f"#opens {place.opens} alone {place.alone}"]
    return [*found, "#last"] if place.last else found


def _news(each: Words, matter: frozenset[str], prompted: frozenset[str], told: set[str]) -> _News | None:
    """How much of the sentence is in the prompt, how much was told before, how much is new."""
    if not matter:
        return None
    fresh = matter - told - prompted
    old, given, new = (_third(len(part) / len(matter)) for part in (matter & told, matter & prompted, fresh))
    return _News(old, given, new, not each.names.isdisjoint(fresh), not each.classes - {"IS", "WAS"})


def _news_names(news: _News, genre: str) -> list[str]:
    return [
        f"#old {news.old} {genre}",
        f"#given {news.given} {genre}",
        f"#given {news.given} old {news.old}",
        f"#fresh {news.fresh} {genre} names {news.names}",
        f"#fresh {news.fresh} quiet {news.still}",
    ]


def _third(share: float) -> int:
    return 0 if share < 0.2 else 1 if share < 0.6 else 2


def _beside(where: str, other: Words) -> list[str]:
    tokens = other.tokens or [""]
    return [f"{where}^{tokens[0]}", f"{where}${tokens[-1]}"]
