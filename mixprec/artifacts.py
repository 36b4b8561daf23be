"""Artifacts on disk: written to a temporary name, flushed, renamed; read back with errors that name the file.

An artifact never holds a time or a duration, so that a run that was killed and continued ends with the
same bytes as one that was not.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import mixprec
from mixprec import parsing
from mixprec.errors import UserError

SCHEMA_VERSION = 1
_PROVENANCE_PACKAGES = ("torch", "transformers", "safetensors", "numpy")


def partial(path: Path) -> Path:
    """Where ``path`` is written before it is complete; what a killed run left there goes when it is written again."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` (file or folder); on success it takes the name, else it goes.

    Raises UserError where the disk is full or the target can't be written or is no file (a device, a pipe).
    """
    temporary = partial(path)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            # The rename would put a file in the place of /dev/null.
            raise UserError(f"{path}: is no regular file; choose another place with --out")
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        yield temporary
        if temporary.is_dir():
            # A folder can't be renamed over a non-empty one, so the old one goes first; a kill in between
            # leaves no folder, which looks unfinished, never a mixed one.
            remove(path)
        else:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as problem:
        # What can't be removed was never made, or is in the same trouble: the first problem is the one to tell.
        with suppress(OSError):
            remove(temporary)
        error = _as_user_error(problem, path)
        if error is not None:
            raise error from None
        raise
    _sync_folder(path.parent)


#: A full disk in the words of safetensors, and of numpy, which counts what it could write and keeps no error number.
_FULL = ("No space left", " requested and ")


def _as_user_error(problem: BaseException, path: Path) -> UserError | None:
    """A full disk, a read-only target: the user's to mend. safetensors wraps the operating system's words."""
    number = problem.errno if isinstance(problem, OSError) else None
    text = str(problem)
    if number in (errno.ENOSPC, errno.EDQUOT) or any(words in text for words in _FULL):
        return UserError(f"{path}: the disk is full; free some space and run the same command again")
    if number in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return UserError(f"{path}: can't be written ({os.strerror(number)}); choose another place with --out")
    return None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems can't sync folders; the rename is still atomic
        pass
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically: two-space indent, non-ASCII kept, NaN refused."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, *, finite: bool = True) -> Any:
    """Read JSON. ``finite``: NaN and Infinity, which ``write_json`` never writes, are refused.

    Raises UserError where the file is missing or is no JSON that ``parsing.parse_json`` reads.
    """
    return parse_json(read_text(path), path, finite=finite)


def read_object(path: Path, *, finite: bool = True) -> dict[str, Any]:
    """Read JSON that is an object; else as ``read_json``.

    Raises UserError for any other JSON too.
    """
    data = read_json(path, finite=finite)
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def parse_json(text: str, where: Path | str, *, finite: bool = True) -> Any:
    """The data in a JSON text; errors name ``where`` it is from.

    Raises UserError where ``parsing.parse_json`` refuses it.
    """
    try:
        return parsing.parse_json(text, finite=finite)
    except parsing.Malformed as problem:
        raise UserError(f"{problem.where(where)}: {problem}") from None


def read_versioned(path: Path) -> dict[str, Any]:
    """Read a JSON artifact that says which schema it has.

    Raises UserError where the file is missing or broken, or has another schema than this mixprec reads.
    """
    data = read_json(path)
    found = data.get("schema_version") if isinstance(data, dict) else None
    if found != SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema_version is {found!r}, this mixprec reads {SCHEMA_VERSION}; "
            "run the recipe again, or use the version of mixprec that wrote it"
        )
    return dict(data)


def read_text(path: Path) -> str:
    """Read a UTF-8 text file.

    Raises UserError where the file is missing or no UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as problem:
        raise UserError(f"{path}: can't be read ({problem.strerror})") from None
    except UnicodeDecodeError as problem:
        raise UserError(f"{path}: not UTF-8 text (byte {problem.start}: {problem.reason})") from None
    except ValueError as problem:  # a zero byte in the path
        raise UserError(f"{str(path)!r}: can't be read ({problem})") from None


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def append_line(path: Path, line: str) -> None:
    """Append one line and flush it to disk; a kill can leave half of it, never lose an earlier one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        raise (_as_user_error(problem, path) or problem) from None


def mend_lines(path: Path, begins: bytes) -> None:
    """Take away the half row (maybe half a character) that a kill in mid-line left at the end of a JSON lines file.

    ``begins``: what every row begins with. A last row that is whole stays, and anything else too: the file may be
    another one, given by mistake.
    """
    tail = path.read_bytes().rpartition(b"\n")[2]
    try:
        whole = isinstance(json.loads(tail), dict)
    except ValueError:
        whole = False
    with path.open("r+b") as file:
        file.seek(-len(tail), os.SEEK_END)
        if whole:
            file.write(tail + b"\n")
        elif tail.startswith(begins[: len(tail)]):
            file.truncate()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object per line; blank lines are passed over.

    Raises UserError naming file and line where a line is no JSON object.
    """
    rows = []
    # Not str.splitlines: model output may hold U+2028 or form feeds, which JSON leaves unescaped.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parsing.parse_json(line, finite=False)
        except parsing.Malformed as problem:
            raise UserError(f"{path}:{number}: {problem}; one object per line") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
        rows.append(row)
    return rows


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write a safetensors file atomically; ``metadata`` values are stored as JSON strings."""
    with atomic_path(path) as temporary:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            temporary,
            metadata={key: json.dumps(value, ensure_ascii=False) for key, value in (metadata or {}).items()},
        )
        _sort_header(temporary)
        share(temporary)


def _sort_header(path: Path) -> None:
    """Put a safetensors file's metadata in order: safetensors writes them as a hash map has them, at random."""
    with path.open("rb+") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header = {name: dict(sorted(entry.items())) for name, entry in header.items()}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        file.seek(8)
        file.write(text.ljust(size))  # the same keys and values, so the same length; the end is padded with blanks


def share(path: Path) -> None:
    """Give a file the permissions that ``open`` would: safetensors lets nobody but the owner read its files."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file for lazy reading.

    Raises UserError where the file is missing, truncated or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except SafetensorError as problem:
        raise UserError(f"{path}: broken safetensors file ({problem}); fetch or make it again") from None


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a whole safetensors file: tensors and metadata (JSON strings decoded)."""
    with open_tensors(path) as file:
        metadata = {key: parse_json(value, f"{path}: {key}") for key, value in (file.metadata() or {}).items()}
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (no mapping)


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes; a file that stays as it is is read once per process.

    Raises UserError where it can't be read.
    """
    try:
        found = path.stat()
        return _sha256(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    except OSError as problem:
        raise UserError(f"{path}: can't be read ({problem.strerror})") from None


@functools.lru_cache(maxsize=65_536)
def _sha256(path: Path, *state: int) -> str:
    """``state``: all that the file system knows of the file's content, so that a changed file is read again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """Hex digest of JSON-serialisable parts; equal parts have equal fingerprints on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@functools.cache
def _git_revision() -> str | None:
    """The revision of the checkout that mixprec runs from; None for an installed wheel."""
    root = Path(mixprec.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    found = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def provenance(**inputs: Any) -> dict[str, Any]:
    """What an artifact was made from: schema, package versions, git revision and the given inputs."""
    return {
        "schema_version": SCHEMA_VERSION,
        "mixprec": mixprec.__version__,
        "git_revision": _git_revision(),
        "packages": {name: importlib.metadata.version(name) for name in _PROVENANCE_PACKAGES},
        **inputs,
    }
