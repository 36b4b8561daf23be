"""What the stages of a recipe read from files and write into them, by arithmetic on sizes and on passes over them.

A pass over a file counts once: who writes a file and seals it, or checks it and reads it then, finds it in the system's
cache, as long as that holds one block. Models are counted as larger than that cache: of one that stays in it, nothing
but the first pass comes from the disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mixprec.checkpoint.integrity import weight_bytes
from mixprec.models import fp8
from mixprec.models.decoder import Decoder
from mixprec.plan.bits import Account
from mixprec.plan.schema import Plan

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_ITEMS = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}


class Traffic(NamedTuple):
    """Bytes that a stage reads from files and writes into them."""

    read: int = 0
    written: int = 0

    def __add__(self, other: object) -> Traffic:
        """Both."""
        if not isinstance(other, Traffic):
            return NotImplemented
        return Traffic(self.read + other.read, self.written + other.written)


class Stored(NamedTuple):
    """Bytes of the model's files: of its blocks, and of what lies outside them."""

    blocks: int
    outside: int

    @property
    def all(self) -> int:
        """All weights."""
        return self.blocks + self.outside

    def sweeps(self, passes: float = 1.0, written: int = 0) -> Traffic:
        """What a stage reads that goes through the blocks so often, what lies outside them once."""
        return Traffic(round(self.outside + passes * self.blocks), written)


def stored(config: PretrainedConfig, inventory: Decoder, folder: Path | None) -> Stored:
    """Of the files in ``folder``, else of weights in the type that the configuration says."""
    prefix = f"{inventory.blocks_path}."
    inside = sum(linear.weights for linear in inventory.linears)
    inside += sum(count for name, count in inventory.other.items() if name.startswith(prefix))
    whole = weight_bytes(folder) if folder is not None else None
    if not whole:
        item = _ITEMS.get(str(config.dtype).removeprefix("torch."), 2.0)
        # Of such models the linear modules are in 8 bits, all others in 16.
        eight = fp8.block_of(config.to_dict()) is not None
        less = sum(linear.weights for linear in inventory.linears) * (item - 1) if eight else 0.0
        blocks = inside * item - less
        return Stored(round(blocks), round((inventory.parameters - inside) * item))
    blocks = round(whole * inside / inventory.parameters)
    return Stored(blocks, whole - blocks)


def compressing(
    plan: Plan, account: Account, inventory: Decoder, source: Stored, written: int, spilled: int, *, tuned: bool
) -> Traffic:
    """Of ``compress.stream``: the walk, the blocks' files, what is packed of them, and the checkpoint, which is hashed.

    ``source``: the model's files; ``written``: bytes of the checkpoint's. ``spilled``: bytes of calibration states that
    don't fit into memory, which go to files and come back once for each block. ``tuned``: the blocks' files are read
    and written once more.
    """
    changed = set(plan.changed)
    codes = sum(account.modules[address].bytes for address in changed)
    kept = 1 - sum(linear.weights for linear in inventory.planned(changed)) / inventory.parameters
    copied = round(source.all * kept)
    states = spilled * inventory.layers
    packed = max(0, written - copied)
    times = 2 if tuned else 1
    return Traffic(
        read=source.blocks + source.outside + times * codes + packed + copied + written + states,
        written=times * codes + packed + written + states,
    )
