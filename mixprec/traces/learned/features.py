"""What is told about each sentence of a reasoning: its words, its shape, where it stands, what is new in it, its neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

from mixprec.traces.learned.words import Words, read
from mixprec.traces.sentences import Sentence

#: Raised when the same text has other features: models trained before are refused then.
VERSION = 1


def features(prompt: str, sentences: Sequence[Sentence]) -> list[list[str]]:
    """The names of every sentence's features, all of value 1."""
    if not sentences:
        return []
    words = [read(sentence.text) for sentence in sentences]
    genre = _genre(words)
    asked = read(prompt)
    prompted = asked.names | asked.content
    told: set[str] = set()
    rows = []
    for at, (sentence, each) in enumerate(zip(sentences, words, strict=True)):
        row = ["bias", f"genre {genre}"]
        row += _spoken(each)
        row += _shape(sentence.text, each, genre)
        row += _place(at, sentences)
        row += _news(each, prompted, told, genre)
        if at:
            row += _beside("before", words[at - 1])
        if at + 1 < len(words):
            row += _beside("behind", words[at + 1])
        rows.append(row)
        told |= each.names | each.content
    return rows


def _genre(words: Sequence[Words]) -> str:
    """Mathematics, or facts with names, or else plain reasoning: by the whole trace."""
    signs = sum(each.signs + each.latex > 1 for each in words) / len(words)
    names = sum(bool(each.names) for each in words) / len(words)
    return "signs" if signs > 0.25 else "names" if names > 0.35 else "plain"


def _spoken(each: Words) -> Iterator[str]:
    """Words and pairs of words, once each; the first ones in their places; classes alone and in pairs."""
    tokens = each.tokens
    yield from dict.fromkeys(tokens)
    yield from dict.fromkeys(f"{one} {two}" for one, two in pairwise(tokens))
    opening = [token for token in tokens[:6] if token not in ",."][:4]
    for length in range(1, len(opening) + 1):
        yield "^" + " ".join(opening[:length])
    yield "$" + " ".join(tokens[-2:])
    classes = sorted(each.classes)
    for name in classes:
        yield "@" + name
    for one, two in combinations(classes, 2):
        yield f"@{one}&{two}"


def _shape(text: str, each: Words, genre: str) -> Iterator[str]:
    count = len(each.tokens)
    long = "1" if count < 4 else "2" if count < 8 else "3" if count < 14 else "4" if count < 24 else "5"
    ask = text.rstrip("\"'”’)*").endswith("?")
    yield "long " + long
    yield f"ask {ask} {genre}"
    yield f"ask {ask} long {long}"
    yield f"numbers {min(each.numbers, 3)} {genre}"
    yield f"names {min(len(each.names), 3)} {genre}"
    yield f"years {min(each.years, 2)} names {min(len(each.names), 2)}"
    yield f"signs {min(each.signs + each.latex, 3)} {genre}"
    yield f"quiet {not each.classes - {'IS', 'WAS', 'I'}} {genre} names {min(len(each.names), 2)} signs {min(each.signs, 1)}"
    yield f"self {'I' in each.classes} ask {ask} maybe {'MAYBE' in each.classes}"


def _place(at: int, sentences: Sequence[Sentence]) -> Iterator[str]:
    yield f"number {min(at, 6)}"
    yield f"part {5 * at // len(sentences)}"
    opens = sentences[at].opens
    alone = opens and (at + 1 == len(sentences) or sentences[at + 1].opens)
    yield f"opens {opens} alone {alone}"
    if at + 1 == len(sentences):
        yield "last"


def _news(each: Words, prompted: set[str] | frozenset[str], told: set[str], genre: str) -> Iterator[str]:
    """How much of the sentence is in the prompt, how much was told before, how much is new."""
    matter = each.names | each.content
    if not matter:
        yield "empty"
        return
    old = len(matter & told) / len(matter)
    given = len(matter & prompted) / len(matter)
    fresh = len(matter - told - prompted) / len(matter)
    yield f"old {_third(old)} {genre}"
    yield f"given {_third(given)} {genre}"
    yield f"given {_third(given)} old {_third(old)}"
    yield f"fresh {_third(fresh)} {genre} names {bool(each.names - told - prompted)}"
    yield f"fresh {_third(fresh)} quiet {not each.classes - {'IS', 'WAS'}}"


def _third(share: float) -> int:
    return 0 if share < 0.2 else 1 if share < 0.6 else 2


def _beside(where: str, other: Words) -> Iterator[str]:
    yield f"{where} ^{' '.join(other.tokens[:1])}"
    yield f"{where} ${other.tokens[-1] if other.tokens else ''}"
    for name in other.classes:
        yield f"{where} @{name}"
