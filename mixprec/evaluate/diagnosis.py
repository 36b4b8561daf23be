"""What went wrong in an output: loops, cuts, thinking that never ends, text that is no language. Linear in its length.

A collapsed model repeats a sentence or a chunk until the limit (arXiv 2504.02010, Appendix P); a damaged one writes
more, and gibberish (Appendix N).
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from typing import Any, Literal, NamedTuple

from mixprec.traces import thinking

#: Characters at the end that a loop's period is looked for in; the loop is then followed back as far as it goes.
_TAIL = 24_000
#: A loop: so many repetitions, and so many characters in them together. A row of digits or dashes is none.
_REPEATS, _LOOP = 4, 240
#: Without a fixed period: of this share of the output's end, so much are sentences that stand there so many times.
_END, _SHARE, _TIMES, _SENTENCES = 0.4, 0.8, 3, 12

_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|\n+")
_DIGITS = re.compile(r"\d")
_ZEROS = re.compile("0+")
_LETTERS = re.compile(r"[^\W\d_]")
#: Letters of other scripts than Latin and Greek, which mathematics uses.
_FOREIGN = re.compile(r"[^\W\d_\u0000-\u03ff\u1d00-\u1fff\u2100-\u214f\U0001d400-\U0001d7ff]")
#: Where a formula, code or an address begins; of those that end in a sign of their own only the beginning.
_FORMULA = re.compile(r"\$\$|\$[^$\n]*\$|\\[\[(]|\\[A-Za-z]+|https?://\S+|`[^`\n]*`")
_CLOSES = {"$$": "$$", "\\[": "\\]", "\\(": "\\)"}
_WORD = re.compile(r"[^\W\d_]+")
_ODD = re.compile(r"[\ufffd\u0000-\u0008\u000e-\u001f\ue000-\uf8ff]")
_VOWELS = re.compile(r"[aeiouyàáâäãåèéêëìíîïòóôöõùúûüýÿœæ]", re.IGNORECASE)
_INNER_CAPITAL = re.compile(r"[a-z][A-Z]")
_LONGEST_WORD = 28


class Loop(NamedTuple):
    """How an output ends in repetition: of a ``sentence`` or of a ``chunk`` of several.

    ``start``: where it begins, in characters. ``period``: characters of what repeats, None where it has no fixed order.
    """

    kind: Literal["sentence", "chunk"]
    start: int
    period: int | None


class Diagnosis(NamedTuple):
    """An output's state. ``collapsed``: it loops and was cut at the limit; ``looping``: it loops at its end.

    ``thinking``: whether a thinking was closed, or is still open; ``tag``: which tag the output has for it, if any.

    ``gibberish`` and ``foreign``: shares of its letters in words that are none, and in scripts that the prompt doesn't
    have. ``density``: compressed over plain bytes; loops are near 0, prose near 0.35, noise near 0.7.
    """

    cut: bool
    thinking: thinking.State
    tag: str | None
    looping: Loop | None
    gibberish: float
    foreign: float
    density: float
    bytes: int

    @property
    def collapsed(self) -> bool:
        return self.cut and self.looping is not None


def diagnose(output: str, finish: str, prompt: str = "", tags: tuple[thinking.Tag, ...] = thinking.TAGS) -> Diagnosis:
    """Look at one output; never raises. ``finish``: ``length`` where it was cut at the limit of new tokens."""
    raw = output.encode("utf-8", "replace")
    found = thinking.parts(output, thinking.opening(prompt, tags) is not None, tags)
    return Diagnosis(
        cut=finish == "length",
        thinking=found.state,
        tag=found.tag.name if found.tag else None,
        looping=find_loop(output),
        gibberish=_gibberish(output),
        foreign=_foreign(output, prompt),
        density=len(zlib.compress(raw, 6)) / len(raw) if raw else 0.0,
        bytes=len(raw),
    )


def find_loop(output: str) -> Loop | None:
    """The repetition that an output ends in; None where it doesn't. Counting loops ("Step 7: …") repeat too."""
    text = _DIGITS.sub("0", output.rstrip())
    return _periodic(text) or _shuffled(text)


def _periodic(text: str) -> Loop | None:
    """A loop with a fixed period: the shortest p with which the end repeats often and long enough."""
    backwards = text[-_TAIL:][::-1]
    letter = _LETTERS.search(backwards)
    if letter is None:
        return None
    matches = z_function(backwards)
    for period in range(letter.end(), len(backwards) // _REPEATS + 1):
        length = matches[period] + period
        if length >= max(_LOOP, _REPEATS * period):
            start = len(text) - length
            while start > 0 and text[start - 1] == text[start - 1 + period]:
                start -= 1
            sentences = [part for part in _SENTENCE_END.split(text[start : start + period]) if part.strip()]
            return Loop("sentence" if len(sentences) <= 1 else "chunk", start, period)
    return None


def z_function(text: str) -> list[int]:
    """For each position how many characters from there on equal those at the beginning. Linear time; [0] is 0."""
    size = len(text)
    found = [0] * size
    left = right = 0
    for index in range(1, size):
        length = min(right - index, found[index - left]) if index < right else 0
        while index + length < size and text[length] == text[index + length]:
            length += 1
        found[index] = length
        if index + length > right:
            left, right = index, index + length
    return found


def _shuffled(text: str) -> Loop | None:
    """Sentences that come back again and again in no fixed order over the last part of an output."""
    end = text[int(len(text) * (1 - _END)) :]
    # Numbers that gain a digit make no other sentence.
    sentences = [_ZEROS.sub("0", part).strip() for part in _SENTENCE_END.split(end) if part.strip()]
    if len(sentences) < _SENTENCES:
        return None
    counts = Counter(sentences)
    repeated = sum(len(sentence) for sentence in sentences if counts[sentence] >= _TIMES and len(sentence) > 8)
    if repeated < _SHARE * sum(map(len, sentences)):
        return None
    return Loop("chunk" if len(counts) > 1 else "sentence", len(text) - len(end), None)


def _foreign(output: str, prompt: str) -> float:
    """Share of an output's letters that are of another script than the prompt's."""
    letters = len(_LETTERS.findall(output))
    if not letters or _FOREIGN.search(prompt):
        return 0.0
    return len(_FOREIGN.findall(output)) / letters


def _gibberish(output: str) -> float:
    """Share of letters in words that no language has: no vowel, capitals inside, endless; odd characters count as
    letters. Formulas, code and addresses are left out.
    """
    text = _without_formulas(output)
    total = bad = 0
    for word in _WORD.findall(text):
        total += len(word)
        bad += len(word) if _strange(word) else 0
    odd = len(_ODD.findall(text))
    return (bad + odd) / (total + odd) if total + odd else 0.0


def _without_formulas(text: str) -> str:
    """Text with a blank in place of each formula, piece of code and address."""
    parts, end, last = [], 0, {opens: text.rfind(closes) for opens, closes in _CLOSES.items()}
    position = 0
    while found := _FORMULA.search(text, position):
        position = found.end()
        opens = found[0]
        if opens in _CLOSES:
            # One look from the end for each sign: what is never closed is not searched for again and again.
            if last[opens] >= position:
                position = text.index(_CLOSES[opens], position) + 2
            elif opens != "$$":  # which is an empty formula
                continue
        parts.append(text[end : found.start()])
        end = position
    return " ".join([*parts, text[end:]])


def _strange(word: str) -> bool:
    if len(word) > _LONGEST_WORD:
        return not _FOREIGN.search(word)  # Chinese has no blanks
    if len(word) < 5 or _FOREIGN.search(word):
        return False
    return not _VOWELS.search(word) or len(_INNER_CAPITAL.findall(word)) > 1


def summarise(found: list[Diagnosis], tokens: list[int | None]) -> dict[str, Any]:
    """Counts and means over outputs; each with ``n`` outputs. Tokens are None where a server didn't count them."""
    known = [count for count in tokens if count is not None]
    n = len(found)
    return {
        "n": n,
        "cut": sum(each.cut for each in found),
        "collapsed": sum(each.collapsed for each in found),
        "looping": sum(each.looping is not None for each in found),
        "collapsed_sentence": sum(each.collapsed and each.looping.kind == "sentence" for each in found if each.looping),
        "collapsed_chunk": sum(each.collapsed and each.looping.kind == "chunk" for each in found if each.looping),
        "thinking": {state: sum(each.thinking == state for each in found) for state in ("closed", "open", "absent")},
        "tags": dict(Counter(sorted(each.tag for each in found if each.tag))),
        "empty": sum(each.bytes == 0 for each in found),
        "gibberish": sum(each.gibberish for each in found) / n if n else None,
        "foreign": sum(each.foreign for each in found) / n if n else None,
        "density": sum(each.density for each in found) / n if n else None,
        "bytes": sum(each.bytes for each in found),
        "tokens": {"total": sum(known), "mean": sum(known) / len(known), "n": len(known)} if known else None,
    }
