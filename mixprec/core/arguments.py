"""Arguments of public functions: they have the types that the signatures name, or all wrong ones are told at once."""

from __future__ import annotations

import functools
import inspect
import math
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from mixprec.core.errors import UserError, listed

Given = ParamSpec("Given")
Made = TypeVar("Made")
#: What a user calls values of a type.
_WORDS: Final = {
    bool: "True or False", int: "a whole number", float: "a finite number", str: "text", Path: "a path",
    types.NoneType: "None", Any: "anything",
}  # fmt: skip


def typed(*but: str) -> Callable[[Callable[Given, Made]], Callable[Given, Made]]:
    """A function that refuses arguments of other types than its signature names before it does anything.

    ``but``: arguments that it looks at itself. Calls raise UserError naming every wrong argument. Ranges and known
    names are the function's own matter.
    """

    def decorate(function: Callable[Given, Made]) -> Callable[Given, Made]:
        signature = inspect.signature(function)
        name = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def checking(*args: Given.args, **kwargs: Given.kwargs) -> Made:
            values = {key: value for key, value in signature.bind(*args, **kwargs).arguments.items() if key not in but}
            _check(name, values, _kinds(function))
            return function(*args, **kwargs)

        return checking

    return decorate


def check_fields(value: Any) -> None:
    """A dataclass's fields have the types that it names. Raises UserError as calls of ``typed`` functions do."""
    kind: Any = type(value)
    _check(kind.__name__, vars(value), _kinds(kind))


@functools.cache
def _kinds(owner: Any) -> dict[str, Any]:
    kinds = typing.get_type_hints(owner)
    for name, each in inspect.signature(owner).parameters.items():
        if each.kind is each.VAR_POSITIONAL and name in kinds:
            kinds[name] = types.GenericAlias(tuple, (kinds[name], ...))
    return kinds


def _check(name: str, values: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    wrong = [
        f"{key}: {reprlib.repr(value)}: give {_told(kinds[key])}"
        for key, value in values.items()
        if key in kinds and not _fits(value, kinds[key])
    ]
    if wrong:
        raise UserError(listed(f"mixprec {name}", wrong))


def _fits(value: Any, kind: Any) -> bool:
    origin: Any
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if kind is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is bool:
        return isinstance(value, bool)
    if origin is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if origin is float:
        return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
    if origin is Callable:
        return callable(value)
    if not isinstance(origin, type):
        return True
    if not isinstance(value, origin) or (isinstance(value, str | bytes) and origin is not str):
        return False
    if isinstance(value, Mapping) and len(inner) == 2:
        return all(_fits(key, inner[0]) and _fits(item, inner[1]) for key, item in value.items())
    # What can be read only once is the function's to read.
    return not inner or not isinstance(value, Sequence) or all(_fits(item, inner[0]) for item in value)


def _told(kind: Any) -> str:
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_told(each) for each in inner))
    if origin is Callable:
        return "a function"
    if inner and issubclass(origin, Mapping):
        return f"a mapping of {_told(inner[0])} to {_told(inner[1])}"
    if inner and issubclass(origin, Iterable):
        return f"a list of {_told(inner[0])}"
    return _WORDS.get(origin) or f"{origin.__module__.partition('.')[0]}.{origin.__name__}"
