"""Regular expressions from a stranger's file: the answers of ``re.match``, in bounded time.

Real configurations use lookaheads (GPTQModel's ``dynamic``), which engines with linear time such as RE2 don't have. So
``regex`` matches, which takes the same syntax and a timeout.
"""

from __future__ import annotations

import re
import reprlib
import time

import regex

from mixprec.core.errors import UserError

#: Seconds of computing that all matches of one file may take together; thousands of sensible ones take milliseconds.
BUDGET = 10.0
#: Characters of one pattern; they compile in time that grows with it.
_LONGEST = 20_000
#: What may be read in two ways: an escape, a class of characters, a brace that begins no repeat.
_TWO_WAYS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(?!\d+(?:,\d*)?\}|,\d*\})", re.DOTALL)


class Matcher:
    """Matches patterns of the file ``where``, as messages name it, as long as its ``budget`` of seconds lasts."""

    def __init__(self, where: object, budget: float = BUDGET) -> None:
        self._where, self._left = where, budget
        self._compiled: dict[str, regex.Pattern[str]] = {}

    def match(self, pattern: str, name: str) -> bool:
        """Whether ``pattern`` matches at the beginning of ``name``.

        Raises UserError for what is no regular expression and for one that takes too long.
        """
        compiled = self._compiled.get(pattern)
        if compiled is None:
            compiled = self._compiled[pattern] = self._compile(pattern)
        start = time.process_time()  # regex counts computing time too
        try:
            found = compiled.match(name, timeout=max(self._left, 0.001)) is not None
        except TimeoutError:
            raise UserError(
                f"{self._where}: the pattern {reprlib.repr(pattern)} takes too long to match; write it without repeats "
                "within repeats"
            ) from None
        self._left -= time.process_time() - start
        return found

    def _compile(self, pattern: str) -> regex.Pattern[str]:
        try:
            if len(pattern) > _LONGEST:
                raise re.error(f"longer than {_LONGEST:,} characters")
            re.compile(pattern)  # regex knows more, such as recursion, which other readers refuse
            return regex.compile(_TWO_WAYS.sub(_in_one_way, pattern))
        except (re.error, regex.error, RecursionError, OverflowError) as problem:
            why = f"{reprlib.repr(pattern)} is no regular expression that is read here"
            raise UserError(f"{self._where}: {why} ({str(problem)[:100]})") from None


def _in_one_way(found: re.Match[str]) -> str:
    """To ``re`` these brackets are characters. To ``regex``, ``a{d}`` is a fuzzy match and ``[[:digit:]]`` a digit."""
    text = found[0]
    if text.startswith("\\"):
        return text
    return "\\{" if text == "{" else "[" + re.sub(r"(\\.)|\[", lambda inside: inside[1] or "\\[", text[1:])
