"""Artifacts on disk: written to a temporary name, flushed, renamed; read back with errors that name the file.

An artifact never holds a time or a duration, so that a run that was killed and continued ends with the
same bytes as one that was not.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from mixprec.core import headers, parsing, publish, seals
from mixprec.core.errors import UserError, from_disk
from mixprec.core.progress import console
from mixprec.core.version import VERSION

if TYPE_CHECKING:
    import torch

SCHEMA_VERSION = seals.SCHEMA_VERSION
#: In the first row of a file that was written at once: how many rows it had.
ROWS = "mixprec_rows"
_PROVENANCE_PACKAGES = ("torch", "transformers", "safetensors", "numpy")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with publish.atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any, *, seal: bool = True) -> None:
    """Write JSON atomically: two-space indent, non-ASCII kept, NaN refused; an object with its seal (seals.py)."""
    whole = seals.sealed(data) if seal and isinstance(data, Mapping) else data
    write_text(path, json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, *, finite: bool = True) -> Any:
    """Read JSON. ``finite``: NaN and Infinity, which ``write_json`` never writes, are refused.

    Raises UserError where the file is missing, is no JSON that ``parsing.parse_json`` reads, or not what was sealed.
    """
    return seals.opened(parse_json(read_text(path), path, finite=finite), path)


def read_edited(path: Path) -> Any:
    """Read JSON that people edit: as ``read_json``, but what was changed since it was written is said and used.

    Raises UserError where the file is missing, no JSON, or of another version.
    """
    data = parse_json(read_text(path), path)
    try:
        return seals.opened(data, path)
    except seals.Broken:
        console.print(f"{path}: was edited or damaged since mixprec wrote it; it is used as it stands", soft_wrap=True)
        return seals.content(data)


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
    """Read a UTF-8 text file; the mark that Windows puts in front (BOM) is no part of the text.

    Raises UserError where the file is missing or no UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as problem:
        raise UserError(f"{path}: can't be read ({problem.strerror})") from None
    except UnicodeDecodeError as problem:
        raise UserError(f"{path}: not UTF-8 text (byte {problem.start}: {problem.reason}); save it as UTF-8") from None
    except ValueError as problem:  # a zero byte in the path
        raise UserError(f"{str(path)!r}: can't be read ({problem})") from None


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, each with its seal, atomically; the first says how many there are."""
    listed = [dict(row) for row in rows]
    if listed:
        listed[0][ROWS] = len(listed)
    write_text(path, "".join(_line(row) + "\n" for row in listed))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the bytes that ``append_row`` leaves when it is called for each row, atomically."""
    write_text(path, "".join(_line(row) + "\n" for row in rows))


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a JSON object with its seal as one line, as ``append_line`` does.

    Half a row that a kill has left goes first: the file ends with the bytes of one that was not killed.
    """
    if _ends_in_mid_line(path):
        mend_lines(path, b"{")
    append_line(path, _line(row))


def _ends_in_mid_line(path: Path) -> bool:
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(seals.sealed(row), ensure_ascii=False, allow_nan=False)


def append_line(path: Path, line: str) -> None:
    """Append one line and flush it to disk; a kill can leave half of it, never lose an earlier one.

    Half a line that a kill has left is ended first, so that this one is whole.
    """
    publish.refuse_links(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read() == b"\n" else f"\n{line}"
            file.write(f"{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        raise (from_disk(problem, path) or problem) from None


def mend_lines(path: Path, begins: bytes) -> None:
    """Take away the half row (maybe half a character) that a kill in mid-line left at the end of a JSON lines file.

    ``begins``: what every row begins with. A last row that is whole stays, and anything else too: the file may be
    another one, given by mistake.
    """
    tail = path.read_bytes().rpartition(b"\n")[2]
    try:
        whole = isinstance(parsing.parse_json(tail.decode("utf-8"), finite=False), dict)
    except ValueError:
        whole = False
    with path.open("r+b") as file:
        file.seek(-len(tail), os.SEEK_END)
        if whole:
            file.write(tail + b"\n")
        elif tail.startswith(begins[: len(tail)]):
            file.truncate()


def read_jsonl(path: Path, *, sealed: bool = False) -> list[dict[str, Any]]:
    """Read one JSON object per line; blank lines are passed over. ``sealed``: rows keep their seals for the caller.
    Rows that were cut off or added since the file was written are said.

    Raises UserError naming file and line where a line is no JSON object, or not what was sealed.
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
        rows.append(row if sealed else seals.opened(row, f"{path}:{number}"))
    known = rows[0].pop(ROWS, None) if rows and not sealed else None
    if known not in (None, len(rows)):
        console.print(f"{path}: has {len(rows)} rows of the {known} that were written", soft_wrap=True)
    return rows


def rows_left(path: Path, stamp: str) -> Iterator[dict[str, Any]]:
    """The rows with this ``stamp`` that an earlier run has left in a JSON lines file. What a kill left half is passed
    over, a row that was changed since too, with a sentence: both are made again."""
    for number, line in enumerate(read_text(path).split("\n") if path.is_file() else (), 1):
        try:
            row = seals.opened(parsing.parse_json(line), f"{path}:{number}")
        except parsing.Malformed:
            continue
        except UserError:
            console.print(f"{path}:{number}: was changed or damaged since it was written; made again", soft_wrap=True)
            continue
        if isinstance(row, dict) and row.get("stamp") == stamp:
            yield row


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write a safetensors file with its seal atomically; ``metadata`` values are stored as JSON strings."""
    from safetensors.torch import save_file  # with torch, which whoever only reads and writes JSON doesn't need

    stored = {key: json.dumps(value, ensure_ascii=False) for key, value in (metadata or {}).items()}
    # safetensors writes to a temporary name of its own, which a kill leaves: in a folder that the next attempt removes.
    with publish.atomic_path(path) as temporary, publish.scratch(path) as folder:
        folder.mkdir()
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            folder / "tensors",
            metadata=stored | seals.blank(),
        )
        (folder / "tensors").rename(temporary)
        with temporary.open("rb+") as file:
            headers.sort_metadata(file)
        seals.seal_tensors(temporary)
        publish.share(temporary)


@contextmanager
def open_tensors(path: Path, *, header: bool = False) -> Iterator[Any]:
    """Open a safetensors file for lazy reading; ``header``: of what its header says alone, without torch.

    Raises UserError where the file is missing, can't be read, is truncated, no safetensors file, or not what was
    sealed.
    """
    try:
        opened = safe_open(path, framework="np" if header else "pt")
        seals.check_tensors(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as problem:
        raise UserError(f"{path}: can't be read ({problem.strerror or problem})") from None
    except SafetensorError as problem:
        raise _broken(path, problem) from None
    with opened as file:
        try:
            yield file
        except SafetensorError as problem:
            raise _broken(path, problem) from None


def _broken(path: Path, problem: SafetensorError) -> UserError:
    return from_disk(problem, path) or UserError(f"{path}: broken safetensors file ({problem}); fetch or make it again")


def is_made(path: Path, stamp: str) -> bool:
    """Whether a finished safetensors file with ``stamp`` in its metadata is there.

    A file that was changed or damaged since it was written is none; that is said.
    """
    if not path.is_file():
        return False
    try:
        with open_tensors(path, header=True) as file:
            return bool((file.metadata() or {}).get("stamp") == json.dumps(stamp))
    except UserError:
        console.print(f"{path}: was changed or damaged since it was written; made again", soft_wrap=True)
        return False


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a whole safetensors file: tensors and metadata (JSON strings decoded)."""
    with open_tensors(path) as file:
        stored = seals.content(file.metadata() or {})
        metadata = {key: parse_json(value, f"{path}: {key}") for key, value in stored.items()}
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (no mapping)


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes; a file that stays as it is is read once per process.

    Raises UserError where it can't be read.
    """
    try:
        state = seals.state(path)
        if state not in _digests:
            with path.open("rb") as file:
                _digests[state] = hashlib.file_digest(file, "sha256").hexdigest()
        return _digests[state]
    except OSError as problem:
        raise UserError(f"{path}: can't be read ({problem.strerror})") from None


_digests: dict[seals.State, str] = {}


def fingerprint(*parts: Any) -> str:
    """Hex digest of JSON-serialisable parts; equal parts have equal fingerprints on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@functools.cache
def _git_revision() -> str | None:
    """The revision of the checkout that mixprec runs from; None for an installed wheel."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    found = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def provenance(**inputs: Any) -> dict[str, Any]:
    """What an artifact was made from: schema, package versions, git revision and the given inputs."""
    return {
        "schema_version": SCHEMA_VERSION,
        "mixprec": VERSION,
        "git_revision": _git_revision(),
        "packages": {name: importlib.metadata.version(name) for name in _PROVENANCE_PACKAGES},
        **inputs,
    }
