r"""Exact values of the arithmetic that models leave standing: ``2^3 \cdot 9``, ``\binom{9}{2}``, ``\frac{9!}{7!}``."""

from __future__ import annotations

import math
import re
from fractions import Fraction

#: Characters read, bits of a number, and nesting: what is longer, larger or deeper has no value here.
_LONGEST, _BITS, _DEEPEST = 200, 1024, 20
_LARGEST_FACTORIAL = 100
_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?)|(\\[a-zA-Z]+|[-+/^!(){}|,\[\]]))")
_SKIPPED = re.compile(
    r"\\(?:left|right|displaystyle|limits|quad|qquad|space|text\w{0,2}|math\w{2}|bf|rm|fbox|boxed|underline|large)(?![a-zA-Z])"
    r"|\\[,;:! ]|[$~]|_\{?10\}?(?!\d)"
)
_SPELT = [
    (re.compile(r"(?<=[\d!)}])\s*(?:[×·∙]|\*(?!\*))\s*(?=[\d({\\])"), r" \\cdot "),
    (re.compile(r"[−]"), "-"),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\[dt]binom(?![a-zA-Z])"), r"\\binom"),
    (re.compile(r"\\(?:[lr]vert|vert)(?![a-zA-Z])"), "|"),
    (re.compile(r"\\operatorname\{(\w+)\}"), r"\\\1"),
    (re.compile(r"√"), r"\\sqrt"),
]
_TIMES = frozenset({r"\cdot", r"\times", r"\ast"})
_BRACKETS = {"(": ")", "{": "}", "[": "]", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil", "|": "|"}


class _NoValueError(ValueError):
    """The text is no arithmetic, or too large."""


def _require(condition: object) -> None:
    if not condition:
        raise _NoValueError


def spelt(text: str) -> str:
    """The text with one spelling for each sign of an operation."""
    for pattern, replacement in _SPELT:
        text = pattern.sub(replacement, text)
    return text


def value(text: str) -> Fraction | None:
    """The value of a text that is arithmetic on numbers from end to end, else None. Exact, bounded, never raises."""
    if len(text) > _LONGEST:
        return None
    text = _SKIPPED.sub(" ", spelt(text)).strip()
    tokens: list[str | Fraction] = []
    position = 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if not token:
            return None
        tokens.append(Fraction(token[1]) if token[1] else token[2])
        position = token.end()
    try:
        return _Reader(tokens).whole()
    except _NoValueError:
        return None


class _Reader:
    """Recursive descent over tokens: numbers, signs and LaTeX commands."""

    def __init__(self, tokens: list[str | Fraction]) -> None:
        self._tokens, self._at, self._depth = [*tokens, ""], 0, 0

    def whole(self) -> Fraction:
        found = self._sum()
        _require(self._next == "")
        return found

    @property
    def _next(self) -> str | Fraction:
        return self._tokens[self._at]

    def _take(self, *wanted: str) -> str | Fraction | None:
        if self._next not in wanted:
            return None
        self._at += 1
        return self._tokens[self._at - 1]

    def _sum(self) -> Fraction:
        self._depth += 1
        _require(self._depth <= _DEEPEST)
        found = self._product()
        while sign := self._take("+", "-"):
            found = found + self._product() if sign == "+" else found - self._product()
        self._depth -= 1
        return _bounded(found)

    def _product(self) -> Fraction:
        found = self._signed()
        while True:
            if self._take(*_TIMES):
                found *= self._signed()
            elif sign := self._take("/", r"\div", r"\bmod", r"\mod"):
                by = self._signed()
                _require(by)
                found = found / by if sign in ("/", r"\div") else found % by
            elif self._next in (r"\sqrt", r"\binom", "("):
                found *= self._power()  # 6\sqrt{144}, 8(9)
            else:
                return _bounded(found)
            _bounded(found)

    def _signed(self) -> Fraction:
        sign = 1
        while taken := self._take("+", "-"):
            sign = -sign if taken == "-" else sign
        return sign * self._power()

    def _power(self) -> Fraction:
        base = self._primary()
        while self._take("!"):
            _require(0 <= base <= _LARGEST_FACTORIAL)
            base = Fraction(math.factorial(_integer(base)))
        if not self._take("^"):
            return base
        exponent = self._group()
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        _require(abs(exponent) * bits <= _BITS and (base or exponent >= 0))
        return Fraction(base ** _integer(exponent))

    def _group(self) -> Fraction:
        """What a command or ``^`` applies to: ``{…}``, or one number. Of ``\\frac12`` and ``2^10`` no digit is cut."""
        if self._next == "{":
            return self._primary()
        negative = self._take("-")
        _require(isinstance(self._next, Fraction))
        found = self._primary()
        return -found if negative else found

    def _primary(self) -> Fraction:
        token = self._next
        self._at += 1
        if isinstance(token, Fraction):
            return token
        if token in _BRACKETS:
            return self._bracketed(token)
        if token == r"\frac":
            top, bottom = self._group(), self._group()
            _require(bottom)
            return top / bottom
        if token == r"\sqrt" and self._next != "[":
            return _root(self._group())
        if token == r"\binom":
            return _binomial(self._group(), self._group())
        if token in (r"\gcd", r"\lcm", r"\max", r"\min"):
            return self._of_two(token)
        raise _NoValueError

    def _bracketed(self, opening: str) -> Fraction:
        found = self._sum()
        if opening == "{" and self._take(r"\choose"):
            found = _binomial(found, self._sum())
        _require(self._take(_BRACKETS[opening]))
        if opening == r"\lfloor":
            return Fraction(math.floor(found))
        if opening == r"\lceil":
            return Fraction(math.ceil(found))
        return abs(found) if opening == "|" else found

    def _of_two(self, command: str) -> Fraction:
        _require(self._take("("))
        one = self._sum()
        _require(self._take(","))
        other = self._sum()
        _require(self._take(")"))
        if command in (r"\max", r"\min"):
            return max(one, other) if command == r"\max" else min(one, other)
        return Fraction((math.gcd if command == r"\gcd" else math.lcm)(_integer(one), _integer(other)))


def _bounded(number: Fraction) -> Fraction:
    _require(max(number.numerator.bit_length(), number.denominator.bit_length()) <= _BITS)
    return number


def _integer(number: Fraction) -> int:
    _require(number.denominator == 1)
    return int(number)


def _root(number: Fraction) -> Fraction:
    _require(number >= 0)
    root = Fraction(math.isqrt(number.numerator), math.isqrt(number.denominator))
    _require(root * root == number)
    return root


def _binomial(above: Fraction, below: Fraction) -> Fraction:
    _require(0 <= below <= above <= 1000)
    return _bounded(Fraction(math.comb(_integer(above), _integer(below))))
