"""Models whose decoder blocks stay on disk: each block's weights are in memory while it is at work.

What works block by block (streamed attribution, compression) opens a model with ``Model.open_blocks``, lets the model
say what its blocks are given with ``block_inputs``, and goes through ``Blocks.block``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple, get_args

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from mixprec.checkpoint.reader import Checkpoint
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.core.upstream import first_line
from mixprec.models.decoder import Decoder
from mixprec.models.discover import empty
from mixprec.models.source import Source
from mixprec.models.tensors import check_computable, check_finite, take
from mixprec.models.weights import blocks_of, body_of, map_in

#: What lies outside the blocks.
Outside = Literal["embedding", "norm", "head"]
OUTSIDE: Final[tuple[Outside, ...]] = get_args(Outside)


@dataclass(frozen=True)
class Blocks:
    """A model whose blocks are empty: their weights stay in ``source`` until they are needed on ``device``."""

    model: Any
    source: Source
    device: str = "cpu"

    @cached_property
    def decoder(self) -> Decoder:
        """What it is made of."""
        return map_in(self.model)

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return self.decoder.layers

    def read(self, index: int) -> dict[str, Tensor]:
        """A block's weights by their names within it.

        Raises UserError where they are NaN or infinite, or of a type that can't be computed with.
        """
        path = self.decoder.blocks[index].path
        return read(blocks_of(self.model)[index], f"{path}.", self.source, self.device)

    @contextmanager
    def block(self, index: int, weights: dict[str, Tensor] | None = None) -> Iterator[nn.Module]:
        """A block with its ``weights``, by default as ``read``; they go at the end."""
        block = blocks_of(self.model)[index]
        put(block, self.read(index) if weights is None else weights)
        try:
            yield block
        finally:
            block.to("meta")


@dataclass(frozen=True)
class Live:
    """A loaded model: its blocks have their weights, and what a visitor changes in them stays."""

    model: Any

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return len(blocks_of(self.model))

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """A block as it is."""
        yield blocks_of(self.model)[index]


def open_blocks(opened: Checkpoint, dtype: torch.dtype, device: str, outside: Sequence[Outside] = OUTSIDE) -> Blocks:
    """The model of a checkpoint (``Model.open_blocks``); of its weights only those ``outside`` the blocks are read,
    which stay in memory."""
    config, source = opened.shapes, opened.source
    with init_empty_weights(include_buffers=False):
        model = empty(config, dtype)
    blocks = Blocks(model, source, device)
    decoder = blocks.decoder
    names = {"embedding": decoder.embedding, "norm": decoder.norm, "head": decoder.head}
    for name in decoder.around:
        module = model.get_submodule(name)
        if any(True for _ in module.parameters()):
            put(module, read(module, f"{name}.", source, device))
        module.to(device)
    for part in outside:
        if part == "head" and decoder.tied:
            model.get_output_embeddings().weight = model.get_input_embeddings().weight
        else:
            module = model.get_submodule(names[part])
            put(module, read(module, f"{names[part]}.", source, device))
    return blocks


def read(module: nn.Module, prefix: str, source: Source, device: str) -> dict[str, Tensor]:
    """A module's weights, whose names in the checkpoint begin with ``prefix``, in the module's own types.

    Raises UserError for types that can't be computed with, and values that are NaN or infinite.
    """
    wanted = module.state_dict()
    tensors: dict[str, Tensor] = {}
    for shard in sorted({source.tensors[prefix + name].shard for name in wanted}):
        with artifacts.open_tensors(source.folder / shard) as file:
            for name, empty in wanted.items():
                if source.tensors[prefix + name].shard == shard:
                    check_computable(source, prefix + name)
                    found = take(file, prefix + name, source.tensors[prefix + name])
                    tensors[name] = found.to(device=device, dtype=empty.dtype)
    for name, tensor in tensors.items():
        check_finite(f"{source.folder}: {prefix}{name}", tensor)
    return tensors


def put(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Make ``weights`` the parameters of a module."""
    module.load_state_dict(weights, assign=True)
    module.requires_grad_(False)


class BlockInputs(NamedTuple):
    """``hidden`` (batch, tokens, hidden) enters the first block; ``contexts``: each block's other arguments."""

    hidden: Tensor
    contexts: list[dict[str, Any]]


def block_inputs(model: Any, tokens: Tensor, **arguments: Any) -> BlockInputs:
    """What the model hands its blocks for ``tokens`` (batch, tokens): rotary embeddings, masks, ``arguments``."""
    device = model.get_input_embeddings().weight.device
    with _recording(model) as recorders:
        try:
            body_of(model)(input_ids=tokens.to(device), use_cache=False, **arguments)
        except (ValueError, TypeError, IndexError) as problem:
            raise UserError(
                f"model.id: {type(model).__name__} calls its blocks in a way that is not known here "
                f"({first_line(problem)})"
            ) from None
    return BlockInputs(recorders[0].hidden, [recorder.context for recorder in recorders])


class _Recorder(nn.Module):
    """Stands in for a block and notes what the model hands it: hidden states, rotary embeddings, masks.

    Some models ask their blocks which kind they are: it has their attributes.
    """

    hidden: Tensor
    context: dict[str, Any]

    def __init__(self, block: nn.Module, parts: int) -> None:
        """``parts``: of what the block returns, hidden states first; 0: those alone."""
        super().__init__()
        self._parts = parts
        self.__dict__["_block"] = block
        signature = inspect.signature(block.forward)
        kinds = signature.parameters.items()
        self.__dict__["_signature"] = signature
        self.__dict__["_rest"] = next((name for name, each in kinds if each.kind == each.VAR_KEYWORD), "")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_block"], name)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        given = self._signature.bind(*arguments, **named).arguments
        (_, hidden), *others = given.items()
        context = dict(others)
        self.hidden, self.context = hidden, context | context.pop(self._rest, {})
        return (hidden, *[None] * (self._parts - 1)) if self._parts else hidden


@contextmanager
def _recording(model: Any) -> Iterator[list[_Recorder]]:
    """Put recorders into the place of the blocks."""
    blocks, where = blocks_of(model), map_in(model).blocks_path
    recorders = [_Recorder(block, map_in(model).parts) for block in blocks]
    model.set_submodule(where, nn.ModuleList(recorders))
    try:
        yield recorders
    finally:
        model.set_submodule(where, blocks)
