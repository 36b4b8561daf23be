"""The one exception that is the user's to mend. Everything else that escapes is our bug (exit code 1)."""

from __future__ import annotations

import difflib
import errno
import os
import re
import reprlib
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError


class UserError(Exception):
    """Bad input: the message names file, key, value and remedy. Exit code 2, no stack trace."""


@contextmanager
def said_of(key: str) -> Iterator[None]:
    """Errors inside begin with the ``key`` that is at fault."""
    try:
        yield
    except UserError as problem:
        raise UserError(f"{key}: {str(problem).removeprefix(f'{key}: ')}") from None


class Problems(ValueError):
    """Several things that are wrong with one value; what a pydantic validator raises to tell all of them."""

    def __init__(self, told: Sequence[str]) -> None:
        super().__init__("; ".join(told))
        self.told = tuple(told)


def listed(where: str, problems: Sequence[str]) -> str:
    """The text of one error that lists ``problems`` with what is in ``where`` (a file)."""
    if len(problems) == 1:
        return f"{where}: {problems[0]}"
    return "\n  ".join([f"{where}: {len(problems)} problems", *problems])


@contextmanager
def within(where: str) -> Iterator[None]:
    """A UserError raised inside says ``where`` (a variant, a key) it is, unless it does already."""
    try:
        yield
    except UserError as problem:
        raise UserError(named(where, str(problem))) from None


def named(where: str, told: str) -> str:
    """``told`` with ``where`` it is in front."""
    return told if not where or told.startswith(where) else f"{where}: {told}"


def reason(problem: BaseException) -> str:
    """The first line of what another package says; its kind where it says nothing."""
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]


_REFUSED = "can't be {done} ({reason}); {remedy}"
#: What operating systems refuse to do with files for reasons that the user can mend, by error number.
_FILE_PROBLEMS = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "larger than its file system or the limit on file sizes (ulimit -f) allows; raise the limit, or "
    "{remedy}",
    errno.ENAMETOOLONG: "the name is too long for the file system; give a shorter one",
    errno.EACCES: _REFUSED,
    errno.EPERM: _REFUSED,
    errno.EROFS: _REFUSED,
    errno.ENOENT: "no folder can be made there; {remedy}",  # as in /proc
    errno.ENOTDIR: _REFUSED,
    errno.EISDIR: _REFUSED,
    errno.EEXIST: _REFUSED,
    errno.ENOTEMPTY: _REFUSED,
    errno.ETXTBSY: _REFUSED,
    errno.EBUSY: "the system uses it, perhaps as a mount point; {remedy}",
    errno.ELOOP: "its links lead in a circle; mend them",
    errno.EIO: "the disk fails ({reason}); see what the system's log says of it",
    errno.ESTALE: "the network file system has lost it; mount it again and run the same command again",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine; run the same command again later",
}
#: numpy counts what it could write and keeps no error number, torch.save neither; safetensors has it in its text.
_UNNUMBERED = (" requested and ", "unexpected pos", "iostream error")
_SAFETENSORS = re.compile(r"\(os error ([0-9]+)\)")


def from_disk(problem: BaseException, path: Path | None = None, place: str = "--out") -> UserError | None:
    """The error that names file and remedy, for a problem with the disk; None for all other problems.

    ``path``: what was written; ``place``: the option or variable that names another place for it. Without ``path`` the
    problem names its file.
    """
    text = "" if isinstance(problem, UserError) else str(problem)
    known = _SAFETENSORS.search(text)
    number = problem.errno if isinstance(problem, OSError) else int(known[1]) if known else None
    if number is None and any(each in text for each in _UNNUMBERED):
        number = errno.ENOSPC
    if number not in _FILE_PROBLEMS:
        return None
    if isinstance(problem, FileNotFoundError) and (path is None or Path(problem.filename) not in (path, *path.parents)):
        return None  # a file that is read isn't there
    done, remedy = "written", f"choose another place with {place}"
    where: Any = path
    if path is None:
        done, remedy = "read or written", "see to its permissions, or choose another place"
        where = (problem.filename if isinstance(problem, OSError) else None) or "a file"
    name = os.fsdecode(where) if isinstance(where, bytes) else str(where)
    return UserError(f"{name}: {_FILE_PROBLEMS[number].format(done=done, remedy=remedy, reason=os.strerror(number))}")


def from_pydantic(problem: ValidationError, where: str, schema: type[BaseModel]) -> UserError:
    """One error that lists everything ``schema`` found wrong with the data in ``where`` (a file)."""
    return UserError(listed(where, [line for error in problem.errors() for line in _described(error, schema)]))


def _described(error: Any, schema: type[BaseModel]) -> list[str]:
    unknown = error["type"] == "extra_forbidden"
    keys, holders = _walk(schema, error["loc"], unknown)
    path = f"{key_path(keys)}: " if keys else ""  # what concerns the whole file needs no key
    if unknown:
        return [f"{path}unknown key{_allowed(str(keys[-1]), holders)}"]
    if error["type"] == "missing":
        return [f"{path}this key is missing"]
    # Our own validators raise ValueError with a message that names the value already.
    if error["type"] == "value_error":
        raised = error["ctx"]["error"]
        return [f"{path}{told}" for told in (raised.told if isinstance(raised, Problems) else (raised,))]
    return [f"{path}{reprlib.repr(error['input'])}: {error['msg']}"]


def _allowed(key: str, holders: Iterable[type[BaseModel]]) -> str:
    known = list(dict.fromkeys(name for holder in holders for name in holder.model_fields))
    return f"{near(key, known)} (keys here: {', '.join(known)})" if known else ""


def near(name: str, known: Iterable[str]) -> str:
    """What follows an unknown name in a message: the known one that it is nearly, if there is one."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def key_path(keys: Sequence[str | int]) -> str:
    """Keys of nested data as a person writes them: ``plan.rules[0].format``."""
    path = ""
    for key in keys:
        if isinstance(key, int):
            path += f"[{key}]"
        elif "." in key or "*" in key:
            path += f'["{key}"]'
        else:
            path += f".{key}"
    return path.removeprefix(".")


def _walk(
    schema: type[BaseModel], loc: Sequence[str | int], unknown: bool
) -> tuple[list[str | int], list[type[BaseModel]]]:
    """The parts of ``loc`` that are keys of the data, and the models that the last one was looked up in.

    ``unknown``: the last part is a key that no model has.
    Where a union is tried, pydantic puts the name of the alternative into ``loc``; the data has no such key.
    """
    keys: list[str | int] = []
    kinds: list[Any] = [schema]
    holders: list[type[BaseModel]] = []
    for depth, part in enumerate(loc):
        flat = [plain for kind in kinds for plain in _alternatives(kind)]
        models = [kind for kind in flat if isinstance(kind, type) and issubclass(kind, BaseModel)]
        inside = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        inside += [item for kind in flat for item in _items(kind, part)]
        if inside or (unknown and depth == len(loc) - 1):
            keys.append(part)
            kinds, holders = inside, models
        else:
            kinds = [model for model in models if model.__name__ == part] or kinds
    return keys, holders


def _alternatives(kind: Any) -> list[Any]:
    """Members of a union, the type within Annotated, else the type itself."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        return _alternatives(typing.get_args(kind)[0])
    if origin in (typing.Union, types.UnionType):
        return [plain for member in typing.get_args(kind) for plain in _alternatives(member)]
    return [kind]


def _items(kind: Any, part: str | int) -> list[Any]:
    """The type of what a dict has under a key, or a list or tuple at an index."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict and isinstance(part, str):
        return [arguments[1]]
    return [arguments[0]] if origin in (list, tuple) and isinstance(part, int) else []
