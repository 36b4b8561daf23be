"""A safetensors file that is filled piece by piece, for tensors that are larger than what memory should hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from mixprec.core import headers, publish, seals


class Shape(NamedTuple):
    """What a tensor in the file is."""

    dtype: torch.dtype
    sizes: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.dtype.itemsize * int(torch.Size(self.sizes).numel())


class TensorFile:
    """Tensors of zeros on disk, to write and to add to. Made by ``create``."""

    def __init__(self, file: BinaryIO, shapes: Mapping[str, Shape], offsets: Mapping[str, int]) -> None:
        self._file = file
        self._shapes = shapes
        self._offsets = offsets

    def write(self, name: str, values: Tensor) -> None:
        """Write a whole tensor.

        Raises ValueError where it has another dtype or shape than was announced.
        """
        shape = self._shapes[name]
        if (values.dtype, tuple(values.shape)) != shape:
            raise ValueError(f"{name}: {values.dtype} {tuple(values.shape)}, announced was {shape}")
        self._file.seek(self._offsets[name])
        self._file.write(_bytes(values))

    def add(self, name: str, row: int, start: int, values: Tensor) -> None:
        """Add ``values`` (n,) to columns start … start + n - 1 of a row of a matrix."""
        shape = self._shapes[name]
        offset = self._offsets[name] + (row * shape.sizes[1] + start) * shape.dtype.itemsize
        self._file.seek(offset)
        there = torch.frombuffer(bytearray(self._file.read(values.nbytes)), dtype=shape.dtype)
        self._file.seek(offset)
        self._file.write(_bytes(there + values.to(shape.dtype)))


def _bytes(values: Tensor) -> memoryview:
    return values.contiguous().numpy().data.cast("B") if values.numel() else memoryview(b"")


@contextmanager
def create(path: Path, shapes: Mapping[str, Shape], metadata: Mapping[str, Any]) -> Iterator[TensorFile]:
    """A file of zeros that appears under its name when the block is left without an error.

    ``metadata`` values are stored as JSON strings, as artifacts.save_tensors does. Raises UserError where the file
    can't be written.
    """
    # Wide elements first, so that every tensor is aligned to its elements.
    names = sorted(shapes, key=lambda name: (-shapes[name].dtype.itemsize, name))
    stored = {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
    entries = {name: headers.Entry(headers.type_name(shapes[name].dtype), shapes[name].sizes) for name in names}
    header = headers.made(entries, stored | seals.blank())
    with publish.atomic_path(path) as temporary:
        with temporary.open("w+b") as file:
            file.write(header.text)
            file.truncate(header.size)
            yield TensorFile(file, shapes, header.begins)
        seals.seal_tensors(temporary)
        publish.share(temporary)
