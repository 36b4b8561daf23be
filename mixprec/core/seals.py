"""Seals: the SHA-256 of an artifact's content, carried by the artifact itself, so that whoever reads it, wherever it
was copied to, notices that a bit of it has changed since it was written.

JSON objects, and the lines of JSON lines, have it under ``KEY``, over their content whatever its layout. safetensors
files have it in their metadata, over all other bytes. What has no seal is read as it is: others write files too.
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

KEY = "mixprec_sha256"
#: Stands in a file's metadata until the rest of the file is known, and in its place where the file is hashed.
BLANK = "0" * 64
_SEAL = re.compile(rb'"mixprec_sha256":"([0-9a-f]{64})"')
_CHUNK = 1 << 20

#: Where a file lies on the disk, its size and its times.
State = tuple[int, int, int, int, int]


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """``data``, which JSON can hold, and its seal.

    Raises ValueError for NaN and infinite numbers.
    """
    return {**data, KEY: _of(json.loads(json.dumps(data, allow_nan=False)))}


def opened(data: Any, where: object) -> Any:
    """What was sealed, without its seal; other data as they are.

    Raises UserError naming ``where`` it is from, where it isn't what was sealed.
    """
    if not isinstance(data, dict) or KEY not in data:
        return data
    content = {key: value for key, value in data.items() if key != KEY}
    if data[KEY] != _of(content):
        raise UserError(
            f"{where}: was edited or damaged since mixprec wrote it (its {KEY} is another); make it again, or remove "
            f"{KEY} from it to use it as it is"
        )
    return content


def _of(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def state(path: Path) -> State:
    """All that the file system knows of a file's content; not the name, so that a finished folder may get its own.

    What was read of a file is known as long as this stays the same. Raises OSError as ``Path.stat``.
    """
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def seal_tensors(path: Path) -> None:
    """Write the seal of a safetensors file over the BLANK under KEY of its metadata."""
    found = _digest(path)
    assert found is not None, f"{path} has no place for a seal"
    digest, _, where = found
    with path.open("rb+") as file:
        file.seek(where)
        file.write(digest.encode())


def check_tensors(path: Path) -> None:
    """Raises UserError where a safetensors file isn't what was sealed; reads a file that stays as it is once."""
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
        found = _SEAL.search(header)
        if found is None:
            return None
        digest = hashlib.sha256(header[: found.start(1)] + BLANK.encode() + header[found.end(1) :])
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest(), found[1].decode(), found.start(1)
