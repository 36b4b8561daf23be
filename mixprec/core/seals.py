"""Seals: the SHA-256 of an artifact's content, carried by the artifact itself, so that whoever reads it, wherever it
was copied to, notices that a bit of it has changed since it was written.

JSON objects, and the lines of JSON lines, have it under ``KEY``, over their content whatever its layout. safetensors
files have it in their metadata, over all other bytes. What has no seal is read as it is: others write files too.

Beside the seal stands the version of what artifacts look like (``SCHEMA``): a file of a later mixprec is refused by its
version, not by the first key that is strange. Files that were sealed before there was one are of version 1.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixprec.core import headers
from mixprec.core.errors import UserError

KEY, SCHEMA = "mixprec_sha256", "mixprec_schema"
#: Version of what is written. A higher one reads the lower ones, or refuses them in ``check_version``.
SCHEMA_VERSION = 1
#: Stands in a file's metadata until the rest of the file is known, and in its place where the file is hashed.
BLANK = "0" * 64
_SEAL = re.compile(rb'"mixprec_sha256":"([0-9a-f]{64})"')
_VERSION = re.compile(rb'"mixprec_schema":"([^"]*)"')
_CHUNK = 1 << 20

#: Where a file lies on the disk, its size and its times.
State = tuple[int, int, int, int, int]


class Broken(UserError):
    """What was sealed has changed since."""


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """``data``, which JSON can hold, with the version and its seal.

    Raises ValueError for NaN and infinite numbers.
    """
    whole = {**data, SCHEMA: SCHEMA_VERSION}
    return {**whole, KEY: _of(json.loads(json.dumps(whole, allow_nan=False)))}


def opened(data: Any, where: object) -> Any:
    """What was sealed, without its seal; other data as they are.

    Raises UserError naming ``where`` it is from for another version, Broken where it isn't what was sealed.
    """
    if not isinstance(data, dict) or not (KEY in data or SCHEMA in data):
        return data
    check_version(data.get(SCHEMA, 1), where)
    if data.get(KEY) != _of({key: value for key, value in data.items() if key != KEY}):
        raise Broken(
            f"{where}: was edited or damaged since mixprec wrote it (its {KEY} is another); make it again, or remove "
            f"{KEY} and {SCHEMA} from it to use it as it is"
        )
    return content(data)


def content(data: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` without version and seal, whatever these say."""
    return {key: value for key, value in data.items() if key not in (KEY, SCHEMA)}


def check_version(found: Any, where: object) -> None:
    """Raises UserError where an artifact in ``where`` is of a version that is not read here."""
    if type(found) is not int or found < 1:
        raise UserError(f"{where}: {SCHEMA} is {found!r}, which mixprec never wrote; make it again")
    if found > SCHEMA_VERSION:
        raise UserError(
            f"{where}: was written by a later mixprec ({SCHEMA} {found}, this one reads {SCHEMA_VERSION}); use that "
            "mixprec, or make the file again with this one"
        )


def _of(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def state(path: Path) -> State:
    """All that the file system knows of a file's content; not the name, so that a finished folder may get its own.

    What was read of a file is known as long as this stays the same. Raises OSError as ``Path.stat``.
    """
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def blank() -> dict[str, str]:
    """What a safetensors file has in its metadata before ``seal_tensors``."""
    return {SCHEMA: str(SCHEMA_VERSION), KEY: BLANK}


def seal_tensors(path: Path) -> None:
    """Write the seal of a safetensors file over the BLANK under KEY of its metadata."""
    found = _digest(path)
    assert found is not None, f"{path} has no place for a seal"
    digest, _, where = found
    with path.open("rb+") as file:
        file.seek(where)
        file.write(digest.encode())


def check_tensors(path: Path) -> None:
    """Raises UserError where a safetensors file isn't what was sealed, or is of another version.

    A file that stays as it is is read once.
    """
    if not _intact(path, state(path)):
        raise UserError(
            f"{path}: its values are not those that were written; make it again (remove it, and run the command that "
            "made it)"
        )


@functools.lru_cache(maxsize=65_536)
def _intact(path: Path, _: State) -> bool:
    found = _digest(path)
    return found is None or found[0] == found[1]


def _digest(path: Path) -> tuple[str, str, int] | None:
    """A file's digest with a BLANK for its seal, the seal, and where it stands; None for a file without one."""
    with path.open("rb") as file:
        header = headers.read(file) or b""
        found, version = _SEAL.search(header), _VERSION.search(header)
        if version is not None:
            check_version(int(version[1]) if version[1].isdigit() else version[1].decode(errors="replace"), path)
        if found is None:
            return None
        digest = hashlib.sha256(header[: found.start(1)] + BLANK.encode() + header[found.end(1) :])
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest(), found[1].decode(), found.start(1)
