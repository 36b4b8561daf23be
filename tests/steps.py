"""A matcher of regular expressions that counts its steps: what Python does, one character after the other.

Times on a busy machine say little; the number of steps is the same everywhere and shows how work grows with the input.
It has no short cuts, so it never counts less than Python's takes.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from types import ModuleType
from typing import Any

Next = Callable[[int], "int | None"]


class Counting:
    """Stands in for a compiled pattern: search, finditer, findall, sub and split take the same matches as ``re``.

    Before each it counts the steps of a backtracking search over the whole text in ``Counting.steps``.
    """

    steps = 0

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern
        self._nodes = parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE.value)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._pattern, name)
        if name not in ("search", "match", "fullmatch", "finditer", "findall", "sub", "subn", "split"):
            return found

        def counted(*arguments: Any, **options: Any) -> Any:
            text = (
                next(each for each in arguments if isinstance(each, str) and each is not arguments[0])
                if (name in ("sub", "subn"))
                else arguments[0]
            )
            start = arguments[1] if name in ("search", "match", "finditer") and len(arguments) > 1 else 0
            end = arguments[2] if name == "finditer" and len(arguments) > 2 else len(text)
            self._count(text[:end], start, once=name in ("search", "match", "fullmatch"), here=name != "search")
            return found(*arguments, **options)

        return counted

    def _count(self, text: str, start: int, once: bool, here: bool) -> None:
        """Walk as a search does: from each place on, from behind each match on."""
        place = start
        while place <= len(text):
            end = self._run(list(self._nodes), text, place, lambda at: at)
            if once and (end is not None or here):
                return
            place = end if end is not None and end > place else place + 1

    def _run(self, nodes: list[Any], text: str, at: int, then: Next) -> int | None:
        """The end of a match of ``nodes`` from ``at`` on behind which ``then`` succeeds, None where there is none."""
        Counting.steps += 1
        if not nodes:
            return then(at)
        (op, argument), rest = nodes[0], nodes[1:]
        go: Next = lambda place: self._run(rest, text, place, then)  # noqa: E731
        if op in (codes.LITERAL, codes.NOT_LITERAL, codes.ANY, codes.IN):
            return go(at + 1) if at < len(text) and self._one(op, argument, text[at]) else None
        if op is codes.SUBPATTERN:
            return self._run(list(argument[3]), text, at, go)
        if op is codes.BRANCH:
            return next((e for each in argument[1] if (e := self._run(list(each), text, at, go)) is not None), None)
        if op in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            return self._repeat(op, argument, text, at, go)
        if op in (codes.ASSERT, codes.ASSERT_NOT):
            way, inner = argument
            width = parser.SubPattern.getwidth(inner)[0] if way < 0 else 0
            place = at - width
            holds = place >= 0 and self._run(list(inner), text, place, lambda e: e) is not None
            return go(at) if holds is (op is codes.ASSERT) else None
        if op is codes.AT:
            return go(at) if self._at(argument, text, at) else None
        raise NotImplementedError(str(op))

    def _repeat(self, op: Any, argument: Any, text: str, at: int, go: Next) -> int | None:
        least, most, inner = argument
        items = list(inner)
        if len(items) == 1 and items[0][0] in (codes.LITERAL, codes.NOT_LITERAL, codes.ANY, codes.IN):
            # One character again and again: counted one by one, without a call for each.
            limit = at
            if op is codes.MAX_REPEAT:
                while limit < len(text) and limit - at < most and self._one(*items[0], text[limit]):
                    limit += 1
                    Counting.steps += 1
                places: Iterator[int] = iter(range(limit, at + least - 1, -1))
                return next((end for place in places if (end := go(place)) is not None), None)
            while limit - at <= most:
                if limit - at >= least and (end := go(limit)) is not None:
                    return end
                if limit >= len(text) or not self._one(*items[0], text[limit]):
                    return None
                limit += 1
                Counting.steps += 1
            return None

        def more(count: int, place: int) -> int | None:
            def again(end: int) -> int | None:
                return None if end == place and count >= least else more(count + 1, end)

            first = self._run(items, text, place, again) if op is codes.MAX_REPEAT and count < most else None
            if first is not None:
                return first
            if count >= least and (end := go(place)) is not None:
                return end
            return self._run(items, text, place, again) if op is codes.MIN_REPEAT and count < most else None

        return more(0, at)

    def _one(self, op: Any, argument: Any, character: str) -> bool:
        if op is codes.ANY:
            return character != "\n" or bool(self._pattern.flags & re.DOTALL)
        fold = bool(self._pattern.flags & re.IGNORECASE)
        text = character.lower() if fold else character
        if op in (codes.LITERAL, codes.NOT_LITERAL):
            literal = chr(argument).lower() if fold else chr(argument)
            return (text == literal) is (op is codes.LITERAL)
        negated = argument[0][0] is codes.NEGATE
        return any(self._among(*each, text) for each in argument[negated:]) is not negated

    @staticmethod
    def _among(op: Any, argument: Any, text: str) -> bool:
        if op is codes.LITERAL:
            return text == chr(argument)
        if op is codes.RANGE:
            return argument[0] <= ord(text) <= argument[1]
        kinds = {
            codes.CATEGORY_DIGIT: str.isdecimal,
            codes.CATEGORY_SPACE: str.isspace,
            codes.CATEGORY_WORD: lambda each: each.isalnum() or each == "_",
        }
        opposite = {
            codes.CATEGORY_NOT_DIGIT: codes.CATEGORY_DIGIT,
            codes.CATEGORY_NOT_SPACE: codes.CATEGORY_SPACE,
            codes.CATEGORY_NOT_WORD: codes.CATEGORY_WORD,
        }
        return not kinds[opposite[argument]](text) if argument in opposite else kinds[argument](text)

    def _at(self, kind: Any, text: str, at: int) -> bool:
        lines = bool(self._pattern.flags & re.MULTILINE)
        if kind in (codes.AT_BEGINNING, codes.AT_BEGINNING_STRING):
            return at == 0 or (lines and text[at - 1] == "\n")
        if kind in (codes.AT_END, codes.AT_END_STRING):
            return at == len(text) or (lines and text[at] == "\n") or (at == len(text) - 1 and text[at] == "\n")
        word = [0 <= place < len(text) and (text[place].isalnum() or text[place] == "_") for place in (at - 1, at)]
        return (word[0] != word[1]) is (kind is codes.AT_BOUNDARY)


def count(monkeypatch: Any, modules: list[ModuleType], work: Callable[[str], object], *texts: str) -> list[int]:
    """Steps that ``work`` takes on each text, of all patterns of ``modules`` and of the lines of Python in them."""
    for module in modules:
        for name, value in list(vars(module).items()):
            if isinstance(value, re.Pattern):
                monkeypatch.setattr(module, name, Counting(value))
    files = {module.__file__ for module in modules}
    found: list[int] = []

    def trace(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        Counting.steps += event == "line"
        return trace

    def run() -> None:
        sys.setrecursionlimit(200_000)
        for text in texts:
            Counting.steps = 0
            sys.settrace(trace)
            try:
                work(text)
            finally:
                sys.settrace(None)
            found.append(Counting.steps)

    limit, size = sys.getrecursionlimit(), threading.stack_size(512 * 2**20)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    threading.stack_size(size)
    sys.setrecursionlimit(limit)
    return found
