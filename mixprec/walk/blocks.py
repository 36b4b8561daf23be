"""Models whose decoder blocks stay on disk: each block's weights are in memory while it is at work.

What works block by block (streamed attribution, compression) opens a model with ``Model.open_blocks``, lets the model
say what its blocks are given with ``block_inputs``, and goes through ``Blocks.block``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from mixprec.checkpoint.reader import Checkpoint
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.core.upstream import first_line
from mixprec.models.decoder import Decoder
from mixprec.models.discover.building import empty, without_weights
from mixprec.models.source import Source
from mixprec.models.tensors import check_computable, check_finite, take
from mixprec.models.weights import blocks_of, body_of, map_in, through
from mixprec.numerics.products import Products, multiplying
from mixprec.walk.recording import BlockInputs, recorded
from mixprec.walk.whole import check_walked

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
        _move_tables(block, self.device)
        try:
            yield block
        finally:
            _empty(block)


def _move_tables(block: nn.Module, device: str) -> None:
    """Put what a block holds besides its weights, such as masks and angles, to where it works."""
    for module in block.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            module._buffers[name] = buffer.to(device)


def _empty(block: nn.Module) -> None:
    """Let a block's weights go; tables that no file holds stay."""
    for module in block.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)


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
    with without_weights():
        model = empty(config, dtype)
    blocks = Blocks(model, source, device)
    decoder = blocks.decoder
    names = {"embedding": decoder.embedding, "norm": decoder.norm, "head": decoder.head}
    for name in decoder.around:
        module = model.get_submodule(name)
        if any(True for _ in module.parameters()):
            put(module, read(module, f"{name}.", source, device))
        module.to(device)
    own = [name for name, _ in body_of(model).named_parameters(recurse=False)]
    put(body_of(model), read(body_of(model), f"{decoder.body}.", source, device, own), whole=False)
    for part in outside:
        module = model.get_submodule(names[part])
        tied = part == "head" and decoder.tied
        beside = [name for name in module.state_dict() if name != "weight"] if tied else None
        put(module, read(module, f"{names[part]}.", source, device, beside), whole=not tied)
        if tied:
            module.weight = model.get_input_embeddings().weight
    return blocks


def read(
    module: nn.Module, prefix: str, source: Source, device: str, names: Collection[str] | None = None
) -> dict[str, Tensor]:
    """A module's weights, whose names in the checkpoint begin with ``prefix``, in the module's own types; those with
    the ``names`` within the module, or all.

    Raises UserError for types that can't be computed with, and values that are NaN or infinite.
    """
    wanted = {name: empty for name, empty in module.state_dict().items() if names is None or name in names}
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


def put(module: nn.Module, weights: dict[str, Tensor], *, whole: bool = True) -> None:
    """Make ``weights`` the parameters of a module: all of them, unless it is not to be the ``whole``."""
    module.load_state_dict(weights, assign=True, strict=whole)
    module.requires_grad_(False)


def behind(block: nn.Module, hidden: Tensor, context: Mapping[str, Any], products: Products) -> Tensor:
    """What hidden states leave a block with that multiplies in ``products``, in the type in which they came."""
    with multiplying(products, hidden.device):  # float16 and bfloat16 make float32 of a sum
        return through(block, hidden, context).to(hidden.dtype)


def block_inputs(model: Any, tokens: Tensor, **arguments: Any) -> BlockInputs:
    """What the model hands its blocks for ``tokens`` (batch, tokens): rotary embeddings, masks, ``arguments``.

    Raises UserError for a model whose blocks, taken one by one, don't give what it computes.
    """
    check_walked(model)
    try:
        return recorded(model, tokens, **arguments)
    except (ValueError, TypeError, IndexError) as problem:
        raise UserError(
            f"model.id: {type(model).__name__} calls its blocks in a way that is not known here ({first_line(problem)})"
        ) from None
