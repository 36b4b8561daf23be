"""Arguments of public functions have the types that their signatures name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mixprec.core.arguments import check_fields, typed
from mixprec.core.errors import UserError


@typed("other")
def called(
    count: int = 1,
    share: float = 0.5,
    name: str | Path | None = None,
    names: Sequence[str] = (),
    each: Iterable[str] = (),
    table: Mapping[str, float] = {},
    flag: bool = False,
    on: Callable[[int], Any] | None = None,
    other: int = 0,
    **more: Any,
) -> str:
    """Says so."""
    return "called"


@pytest.mark.parametrize(
    "given",
    [
        {"count": 3, "share": 1, "name": Path("x"), "names": ["a"], "each": iter("ab"), "table": {"a": 1}},
        {"names": ("a", "b"), "each": {"a": 1}, "on": print, "flag": True, "other": "its own matter", "more": object()},
    ],
)
def test_what_fits_is_called(given: dict[str, Any]) -> None:
    assert called(**given) == "called" and called.__doc__ == "Says so."


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"count": True}, "mixprec called: count: True: give a whole number"),
        ({"count": 1.5}, "count: 1.5: give a whole number"),
        ({"share": float("nan")}, "share: nan: give a finite number"),
        ({"share": float("inf")}, "share: inf: give a finite number"),
        ({"share": "0.5"}, "share: '0.5': give a finite number"),
        ({"name": b"x"}, "name: b'x': give text or a path or None"),
        ({"names": "ab"}, "names: 'ab': give a list of text"),
        ({"names": ["a", 1]}, "names: ['a', 1]: give a list of text"),
        ({"each": "ab"}, "each: 'ab': give a list of text"),
        ({"table": {"a": "b"}}, "table: {'a': 'b'}: give a mapping of text to a finite number"),
        ({"table": [1]}, "table: [1]: give a mapping"),
        ({"flag": 1}, "flag: 1: give True or False"),
        ({"on": 3}, "on: 3: give a function or None"),
        ({"count": None, "name": 0}, "mixprec called: 2 problems\n  count: None: give a whole number\n  name: 0: give"),
    ],
)
def test_what_does_not_fit_is_told(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        called(**given)
    assert told in str(caught.value)


def test_methods_and_arguments_in_any_number() -> None:
    class Kept:
        @classmethod
        @typed()
        def load(cls, *paths: str) -> int:
            return len(paths)

    assert Kept.load("a", "b") == 2
    with pytest.raises(UserError, match=r"load: paths: \('a', 3\): give a list of text"):
        Kept.load("a", 3)  # type: ignore[arg-type]


def test_fields_of_a_value() -> None:
    @dataclass(frozen=True)
    class Size:
        bits: float

    check_fields(Size(3.5))
    with pytest.raises(UserError, match=r"mixprec Size: bits: 'x': give a finite number"):
        check_fields(Size("x"))  # type: ignore[arg-type]
