"""What a checkpoint format is: which plans it holds, how a module lies on disk, and how the checkpoint is finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mixprec.checkpoint import holding
from mixprec.models.decoder import Decoder, Linear
from mixprec.numerics.formats import AnyFormat
from mixprec.plan import bits
from mixprec.plan.schema import Plan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

    from mixprec.checkpoint.said import Said
    from mixprec.checkpoint.target import CompressedModule
    from mixprec.models.source import Source
    from mixprec.numerics.storage import AnyQuantized


@dataclass(frozen=True)
class Finish:
    """What a checkpoint is finished from.

    ``source``: the uncompressed checkpoint. ``blocks``: files of the finished blocks in order, with the tensors that
    ``pack`` made of changed modules, and other tensors that changed (norms and biases that AWQ folds a scale into)
    under their own names; only blocks with changes have one. ``folder``: where the checkpoint goes, empty.
    """

    source: Source
    blocks: Sequence[Path]
    folder: Path
    plan: Plan
    inventory: Decoder
    config: PretrainedConfig


class Held(NamedTuple):
    """What a module's tensors hold: codes and grids, or a plain weight, and the format that they are in."""

    quantized: AnyQuantized
    format: AnyFormat


@dataclass(frozen=True)
class CheckpointFormat:
    """One way to write a checkpoint, and to read it.

    ``problems``: (plan, inventory, config) -> address -> why the format can't hold that module; empty where it holds
    the plan. ``pack``: (a compressed module, plan) -> the tensors, by name, that hold it. ``read``: (the module,
    tensors with its own among them, its format, the plan that they were packed by, or what config.json says if it does)
    -> what they hold; it must equal what was packed: resuming relies on it. ``quantization_config``: (plan, inventory)
    -> what config.json gets under this key, None for nothing. ``bytes``: (plan, inventory, config) -> predicted bytes
    of the files that hold weights, headers and metadata included. ``finish``: puts the files that hold weights, and
    config.json, into ``Finish.folder``; tokenizer, licence and card are not its business. ``check``: (the uncompressed
    checkpoint, config): raises UserError where the format can't hold what else lies there, such as its tokenizer.
    """

    name: str
    problems: Callable[[Plan, Decoder, PretrainedConfig], dict[str, str]]
    pack: Callable[[CompressedModule, Plan], dict[str, Tensor]]
    read: Callable[[Linear, Mapping[str, Tensor], AnyFormat, Plan | Said | None], Held]
    quantization_config: Callable[[Plan, Decoder], dict[str, Any] | None]
    bytes: Callable[[Plan, Decoder, PretrainedConfig], int]
    finish: Callable[[Finish], None]
    check: Callable[[Source, PretrainedConfig], None] = lambda source, config: None


def space(
    format: CheckpointFormat,
    plan: Plan,
    inventory: Decoder,
    config: PretrainedConfig,
    source: Source,
    *,
    solved: bool = True,
) -> int:
    """Bytes on disk while a checkpoint of ``source`` is put together: its own, those of the blocks' files as they are
    packed, and what is ``solved`` before that as codes."""
    whole = format.bytes(plan, inventory, config)
    changed = set(plan.changed)
    copied = sum(info.bytes for name, info in source.tensors.items() if name.rpartition(".")[0] not in changed)
    modules = bits.account(plan, inventory).modules
    codes = sum(modules[address].bytes for address in changed) if solved else 0
    return whole + max(0, whole - copied) + codes + sum(path.stat().st_size for path in source.side_files())


def check_plan(format: CheckpointFormat, plan: Plan, inventory: Decoder, config: PretrainedConfig) -> None:
    """A checkpoint of this format can hold the plan. Raises UserError as ``holding.require`` does."""
    holding.require(format.name, format.problems(plan, inventory, config))
