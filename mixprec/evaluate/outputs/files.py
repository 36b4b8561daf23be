"""Files of outputs: JSON lines, JSON, parquet, numbered texts, and folders of them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mixprec.core import artifacts, parsing
from mixprec.core.errors import UserError, reason
from mixprec.evaluate.outputs.formats import FORMATS, PLAIN, plain_keys
from mixprec.evaluate.outputs.rows import Output, Row

#: What some files are that hold outputs, but not as they are read.
_OTHERS = {
    **dict.fromkeys(
        (".gz", ".zst", ".bz2", ".xz", ".zip", ".tar", ".tgz"), "compressed or an archive; unpack it first"
    ),
    **dict.fromkeys(
        (".csv", ".tsv", ".xlsx"), "a table; save it as JSON lines: one object with id and output per line"
    ),
    **dict.fromkeys(
        (".eval", ".pkl", ".pt", ".arrow"), "of a format that isn't read; save it as JSON lines or parquet"
    ),
}
_INSTALL = "pip install 'mixprec[parquet]'"


class OutputFile(NamedTuple):
    """A file of outputs. ``keys``: under which keys a plain one has what; ``empty``: rows without any output."""

    path: Path
    format: str
    rows: tuple[Row, ...]
    keys: Mapping[str, str]
    empty: int


def read(path: Path, keys: Mapping[str, str] | None = None) -> list[OutputFile]:
    """The outputs of a file, or of each file in a folder: JSON lines, JSON, parquet, numbered ``.txt``.

    ``keys``: what of KEYS stands under which key, where a plain file has names of its own. Raises UserError for files
    that can't be read, hold no outputs, or say what isn't understood, naming file, row and key.
    """
    given = dict(keys or {})
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_file():
        return [_file(path, given)]
    found = [_numbered(folder) for folder in sorted([path, *filter(Path.is_dir, path.rglob("*"))]) if _texts(folder)]
    found += [_file(each, given) for each in _files(path)]
    if not found:
        raise UserError(f"{path}: no .jsonl, .json, .parquet or numbered .txt files with outputs in this folder")
    return found


def _files(folder: Path) -> list[Path]:
    """A folder's files of outputs; where lm-eval wrote it, its samples and not its results."""
    found = [each for each in sorted(folder.rglob("*")) if each.suffix in (".jsonl", ".parquet") and each.is_file()]
    if found:
        return found
    own = ("benchmarks.json", "summary.json")
    return [each for each in sorted(folder.glob("*.json")) if each.name not in own]


def _file(path: Path, given: Mapping[str, str]) -> OutputFile:
    if other := _OTHERS.get(path.suffix.lower()):
        raise UserError(f"{path}: {other}")
    data = _rows(path)
    if not data:
        raise UserError(f"{path}: no rows in this file")
    _, sample = data[0]
    kind = PLAIN if given else next(each for each in FORMATS if each.told(sample))
    keys = plain_keys(data, given, path) if kind is PLAIN else {}
    strange = next((where for where, row in data if not kind.told(row)), None)
    if strange is not None:
        raise UserError(f"{strange}: the first row is one of {kind.name}, this one isn't; give each file one format")
    rows = [kind.read(row, where, keys) for where, row in data]
    kept = tuple(row for row in rows if row is not None)
    if not kept:
        raise UserError(f"{path}: {kind.name}, but none of its {len(rows)} rows holds an output")
    return OutputFile(path, kind.name, kept, keys, len(rows) - len(kept))


def _rows(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """The rows of a file, each with the place that messages name."""
    if path.suffix == ".parquet":
        return [(f"{path}: row {number}", row) for number, row in enumerate(_parquet(path), 1)]
    if _has_lines(path):
        return [(f"{path}:{number}", row) for number, row in enumerate(artifacts.read_jsonl(path), 1)]
    data = artifacts.read_json(path)
    if isinstance(data, dict):
        lists = [value for value in data.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
        if data and all(isinstance(value, str) for value in data.values()):
            data = [{"id": key, "output": value} for key, value in data.items()]
        elif data and all(isinstance(value, dict) for value in data.values()):
            data = [{"id": key, **value} for key, value in data.items()]
        else:
            single = {"choices", "messages", "outputs"} & set(data)  # one row, not a list of them
            data = lists[0] if len(lists) == 1 and not single else [data]
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise UserError(f"{path}: expected a list of objects, or an object of outputs by id")
    return [(f"{path}: row {number}", row) for number, row in enumerate(data, 1)]


def _has_lines(path: Path) -> bool:
    """Whether a file is JSON lines rather than JSON: as its first line tells, whatever it is called."""
    first, _, rest = artifacts.read_text(path).strip().partition("\n")
    if first.startswith("["):
        return False
    try:
        whole = isinstance(parsing.parse_json(first, finite=False), dict)
    except parsing.Malformed:
        return first.strip() != "{" and path.suffix != ".json"
    return whole and (bool(rest.strip()) or path.suffix != ".json")


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        library = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError(f"{path}: reading parquet needs the pyarrow package; run: {_INSTALL}") from None
    try:
        rows: list[dict[str, Any]] = library.read_table(path).to_pylist()
    except Exception as problem:  # pyarrow raises its own kinds for broken files
        raise UserError(f"{path}: can't be read as parquet ({reason(problem)[:200]})") from None
    return rows


def _texts(folder: Path) -> list[Path]:
    return sorted((file for file in folder.glob("*.txt") if file.stem.isdigit()), key=lambda file: int(file.stem))


def _numbered(folder: Path) -> OutputFile:
    """A folder ``FOLIO/0.txt``, ``FOLIO/1.txt`` …: a file's number is its question's row, from 0."""
    texts = [(file, artifacts.read_text(file)) for file in _texts(folder)]
    rows = [Row(str(file), (Output(text),), number=int(file.stem), benchmark=folder.name) for file, text in texts]
    return OutputFile(folder, "numbered texts, as the paper's authors released them", tuple(rows), {}, 0)
