"""Opening a checkpoint, whichever reader it needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mixprec.checkpoint import quantization
from mixprec.checkpoint.gguf.stored import StoredGguf
from mixprec.checkpoint.stored import Stored
from mixprec.core.errors import UserError
from mixprec.models import kinds
from mixprec.models.gguf.parts import gguf_in

if TYPE_CHECKING:
    from mixprec.checkpoint.reader import Checkpoint


def open_stored(path: Path) -> Stored:
    """What is stored in a folder or a GGUF file, for who reads no weight; raises as ``open_checkpoint`` does.

    What only computing depends on is not looked at, such as the activation that config.json names.
    """
    file = _file_in(path)
    return Stored(path) if file is None else StoredGguf(path, file)


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder, or a GGUF file.

    Raises UserError where it isn't one that is read here, is incomplete, or holds what nobody reads.
    """
    from mixprec.checkpoint.gguf.checkpoint import GgufCheckpoint  # both bring torch
    from mixprec.checkpoint.reader import Checkpoint

    file = _file_in(path)
    return Checkpoint(path) if file is None else GgufCheckpoint(path, file)


def _file_in(path: Path) -> Path | None:
    """The GGUF file that ``path`` is or has in the place of safetensors files."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    problem = kinds.of_folder(path) if path.is_dir() else kinds.of_file(path, any_name=True)
    if problem is not None:
        raise UserError(f"{path}: {problem}")
    return gguf_in(path)


def original(found: Checkpoint) -> Checkpoint:
    """A checkpoint as one that is to be compressed, or read block by block: its weights are there.

    Raises UserError where it is quantized already.
    """
    if found.packing is not None:
        by = quantization.described(quantization.find(found.config) or {})
        raise UserError(f"{found.path}: quantized already by {by}; give the original model")
    if found.container == "gguf":
        raise UserError(f"{found.path}: its weights are in a GGUF file; give that file itself, or the original model")
    assert all(layout.container == "dense" for layout in found.layouts.values())  # looking at them finds other types
    return found
