"""Tensors on their way through a model, in memory up to a limit and in files beyond it."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mixprec.core.errors import from_disk


class _Filed(NamedTuple):
    path: Path
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class States:
    """Tensors by key. Those beyond ``limit`` bytes lie in files of ``folder``, which is made when the first one does.

    What comes back is equal to the bit, and on the device that it was on. Raises UserError where the disk is full.
    """

    def __init__(self, limit: int, folder: Path) -> None:
        self._limit, self._folder, self._size, self._written = limit, folder, 0, 0
        self._held: dict[Hashable, Tensor] = {}
        self._filed: dict[Hashable, _Filed] = {}

    def __setitem__(self, key: Hashable, tensor: Tensor) -> None:
        self.discard(key)
        if self._size + tensor.nbytes <= self._limit:
            self._held[key] = tensor
            self._size += tensor.nbytes
        else:
            self._filed[key] = self._write(tensor.detach().contiguous())

    def __getitem__(self, key: Hashable) -> Tensor:
        if key in self._held:
            return self._held[key]
        path, shape, dtype, device = self._filed[key]
        # Read, not mapped: what is mapped counts as the process's memory as long as it is in use.
        found = torch.empty(shape, dtype=dtype)
        with path.open("rb", buffering=0) as file:
            bytes_of = found.view(-1).view(torch.uint8).numpy().data
            done = 0
            while done < len(bytes_of):
                got = file.readinto(bytes_of[done:])
                if not got:
                    raise EOFError(f"{path}: is shorter than what was written")
                done += got
        return found.to(device)

    def pop(self, key: Hashable) -> Tensor:
        """The tensor, which is forgotten here."""
        found = self[key]
        self.discard(key)
        return found

    def discard(self, key: Hashable) -> None:
        """Forget a tensor, if there is one."""
        if key in self._held:
            self._size -= self._held.pop(key).nbytes
        elif key in self._filed:
            self._filed.pop(key).path.unlink()

    def _write(self, tensor: Tensor) -> _Filed:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._written += 1
        path = self._folder / f"{self._written:08d}"
        try:
            with path.open("wb") as file:
                file.write(tensor.cpu().view(-1).view(torch.uint8).numpy().data)
        except OSError as problem:
            raise (from_disk(problem, path) or problem) from None
        return _Filed(path, tensor.shape, tensor.dtype, tensor.device)
