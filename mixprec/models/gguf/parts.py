"""All of a GGUF model, in one file or split into parts (``NAME-00001-of-00002.gguf``) as llama.cpp's gguf-split does.

The first part has the metadata, each has tensors of its own; any of them stands for the whole.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import gguf

from mixprec.core.errors import UserError, reason

_MAGIC: Final = b"GGUF"
_PART: Final = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)
#: The package's reader, whatever stands in for it for a while (``one_reader``).
_Reader: Final = gguf.GGUFReader


def is_gguf(path: Path) -> bool:
    """Whether a path is named like a GGUF file."""
    return path.suffix.lower() == ".gguf"


def files_of(path: Path) -> list[Path]:
    """The files of a model by the name of any of them, in order.

    Raises UserError naming one that is not there.
    """
    named = _PART.fullmatch(path.name)
    files = [path]
    if named:
        name, count, suffix = named["name"], int(named["count"]), named["suffix"]
        files = [path.with_name(f"{name}-{number:05d}-of-{count:05d}{suffix}") for number in range(1, count + 1)]
        if path not in files:
            raise UserError(f"{path}: is part {int(named['number'])} of {count} by its name; no model has such a part")
    for file in files:
        if not file.is_file():
            others = f"; {path.name} is one of {len(files)} parts, of which all are needed" if file != path else ""
            raise UserError(f"{file}: no such file{others}")
    return files


def gguf_in(path: Path) -> Path | None:
    """``path`` itself where it is a GGUF file, or the one in a folder that has its weights in nothing else."""
    if path.is_file():
        return path
    found = sorted(file for file in path.iterdir() if is_gguf(file))
    if not found or any(path.glob("*.safetensors")):
        return None
    return found[0] if len(found) == 1 or found == files_of(found[0]) else None


def model_name(path: Path) -> str:
    """The file's name without suffix and number of the part."""
    named = _PART.fullmatch(path.name)
    return named["name"] if named else path.stem


def read(path: Path) -> Any:
    """A gguf.GGUFReader with the metadata of the first part and the tensors of all.

    Raises UserError where a part is missing, damaged, no GGUF file or of another model.
    """
    files = files_of(path)
    readers = [_read_one(file) for file in files]
    for number, (file, reader) in enumerate(zip(files, readers, strict=True)):
        said = (_number(reader, "split.no", 0), _number(reader, "split.count", 1) or 1)
        if said != (number, len(files)):
            raise UserError(
                f"{file}: says that it is part {said[0] + 1} of {said[1]}; parts are named NAME-00001-of-00002.gguf, "
                "give all of them the names that they were made with"
            )
    first = readers[0]
    first.tensors = [tensor for reader in readers for tensor in reader.tensors]
    _check_tensors(files, first)
    return first


def _check_tensors(files: list[Path], reader: Any) -> None:
    twice = [name for name, count in Counter(tensor.name for tensor in reader.tensors).items() if count > 1]
    if twice:
        raise UserError(f"{files[0]}: {twice[0]} is there twice, in {len(files)} parts; fetch the parts of one model")
    counted = _number(reader, "split.tensors.count", len(reader.tensors))
    if counted != len(reader.tensors):
        raise UserError(
            f"{files[0]}: the model has {counted} tensors, its {len(files)} parts hold {len(reader.tensors)}; "
            "fetch them again"
        )


def _read_one(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as problem:
        raise UserError(f"{path}: can't be read ({problem.strerror})") from None
    if magic != _MAGIC:
        raise UserError(f"{path}: no GGUF file")
    try:
        return _Reader(path)
    except Exception as problem:  # damage shows in many ways
        raise UserError(f"{path}: truncated or damaged GGUF file ({reason(problem)}); make or fetch it again") from None


def _number(reader: Any, key: str, default: int) -> int:
    field = reader.get_field(key)
    return default if field is None else int(field.contents())


@contextmanager
def one_reader() -> Iterator[None]:
    """Let transformers read all parts, and each file once: it does it anew for configuration, tokenizer and weights."""
    known = functools.cache(read)
    gguf.GGUFReader = lambda path: known(Path(path))
    try:
        yield
    finally:
        gguf.GGUFReader = _Reader
