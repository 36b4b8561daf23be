"""Writing a checkpoint folder shard by shard, whatever the format of its compressed modules."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from mixprec.core import publish
from mixprec.core.errors import UserError
from mixprec.core.progress import console
from mixprec.models import modelfiles
from mixprec.models.modelfiles import CARD, INDEX
from mixprec.models.source import Source
from mixprec.numerics.formats import AnyFormat
from mixprec.numerics.storage import AnyQuantized


class CompressedModule(NamedTuple):
    """What a method made of one linear module.

    ``restored`` (out, in) are the values that ``quantized`` stands for, in the type of the source's weight.
    """

    weight_name: str
    format: AnyFormat
    quantized: AnyQuantized
    restored: torch.Tensor


def check_target(out: Path, source: Path) -> None:
    """``out`` may be new, empty or a checkpoint that mixprec made; it gets replaced.

    Raises UserError for any other folder or file, for the source itself, and where nothing can be written.
    """
    if out.resolve() == source.resolve():
        raise UserError(f"{out}: is the source checkpoint itself; choose another place with --out")
    if out.exists() and not (out / CARD).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: exists and mixprec did not make it; remove it or choose another place with --out")
    parent = _parent(out)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{out}: can't be written, {parent} takes no files; choose another place with --out")


def blocks_folder(out: Path) -> Path:
    """Where finished blocks lie until the checkpoint ``out`` is put together from them."""
    return out.with_name(f".{out.name}.blocks")


def check_space(out: Path, needed: int) -> None:
    """``needed`` bytes are free where ``out`` lies; what an unfinished run left there is part of them.

    Raises UserError: better now than after hours of work.
    """
    parent = _parent(out)
    usage = shutil.disk_usage(parent)
    left = sum(
        path.stat().st_size
        for folder in (blocks_folder(out), *publish.leftovers(out))
        for path in folder.rglob("*")
        if path.is_file()
    )
    # Some network file systems count nothing: there the disk may still turn out to be full.
    if usage.total and usage.free + left < needed:
        raise UserError(
            f"{out}: writing it takes {needed - left:,} bytes, {parent} has {usage.free:,} free; "
            "free some space or choose another place with --out"
        )


def _parent(out: Path) -> Path:
    """The nearest folder above ``out`` that is there."""
    return next(folder for folder in out.absolute().parents if folder.exists())


def write_shard(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write one file of weights."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=dict(metadata))
    publish.share(path)


def write_side_files(folder: Path, source: Source) -> None:
    """Copy tokenizer, chat templates, generation configuration, licence and what else goes with ``source``.

    What is in the folder already, such as a configuration that names packed modules, stays. Says what is left behind.
    """
    for path in source.side_files():
        copy = folder / path.relative_to(source.folder)
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
    for sentence in modelfiles.said_of_the_rest(source.folder):
        console.print(f"{source.folder}: {sentence}", markup=False)


def write_index(folder: Path, written: Mapping[str, Mapping[str, int]]) -> None:
    """Write the index of a sharded checkpoint; ``written``: file name -> tensor -> bytes."""
    shard_of = {name: shard for shard, tensors in written.items() for name in tensors}
    size = sum(count for tensors in written.values() for count in tensors.values())
    publish.write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(shard_of.items()))})
