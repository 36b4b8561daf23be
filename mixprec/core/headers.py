"""The header of a safetensors file: eight bytes of its length, JSON that says what lies where, blanks up to eight.

Format: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

#: Bits of an element of every type that safetensors has (0.8), in the order in which it writes tensors.
BITS: Final = {
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **dict.fromkeys(("F32", "U32", "I32"), 32),
    **dict.fromkeys(("BF16", "F16", "U16", "I16"), 16),
    **dict.fromkeys(("F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8"), 8),
    **dict.fromkeys(("F6_E3M2", "F6_E2M3"), 6),
    "F4": 4,
    "BOOL": 8,
}
#: Types of what is written here, by their names in torch.
_NAMES: Final = {
    "torch.int64": "I64",
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.int32": "I32",
    "torch.bfloat16": "BF16",
    "torch.float16": "F16",
}


class Entry(NamedTuple):
    """A tensor: its type as safetensors names it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its bytes without the header's."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


class Header(NamedTuple):
    """``text``: the first bytes of a file; ``begins``: tensor -> where its bytes begin in it; ``size``: its bytes."""

    text: bytes
    begins: dict[str, int]
    size: int


def type_name(dtype: object) -> str:
    """A type of torch as safetensors names it."""
    return _NAMES[str(dtype)]


def made(tensors: Mapping[str, Entry], metadata: Mapping[str, str]) -> Header:
    """The header of a file with these tensors, one behind the other."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    begins, end = {}, 0
    for name, entry in tensors.items():
        begins[name], end = end, end + entry.bytes
        entries[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [begins[name], end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    text = len(text).to_bytes(8, "little") + text
    return Header(text, {name: len(text) + begin for name, begin in begins.items()}, len(text) + end)


def read(file: BinaryIO) -> bytes | None:
    """The header of a file that was just opened, with its length; None where it is no safetensors file."""
    start = file.read(8)
    size = int.from_bytes(start, "little")
    return None if size > os.fstat(file.fileno()).st_size else start + file.read(size)


def stored(path: Path, name: str) -> bytes:
    """The bytes of a tensor in a safetensors file that was found whole."""
    with path.open("rb") as file:
        header = read(file)
        assert header is not None
        begin, end = json.loads(header[8:])[name]["data_offsets"]
        file.seek(len(header) + begin)
        return file.read(end - begin)


def sort_metadata(file: BinaryIO) -> None:
    """Put the metadata in order: safetensors writes them as a hash map has them, at random."""
    found = read(file)
    assert found is not None  # safetensors wrote it
    entries = {name: dict(sorted(entry.items())) for name, entry in json.loads(found[8:]).items()}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    file.seek(8)
    file.write(text.ljust(len(found) - 8))  # the same keys and values, so the same length but for blanks
