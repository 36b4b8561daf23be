"""What a model hands its blocks, seen by stand-ins in their places."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from mixprec.models.weights import blocks_of, body_of, map_in


class BlockInputs(NamedTuple):
    """``hidden`` (batch, tokens, hidden) enters the first block; ``contexts``: each block's other arguments."""

    hidden: Tensor
    contexts: list[dict[str, Any]]


def recorded(model: Any, tokens: Tensor, **arguments: Any) -> BlockInputs:
    """What ``model`` hands its blocks for ``tokens`` (batch, tokens): rotary embeddings, masks, ``arguments``.

    May raise whatever a model raises that isn't made to be called in this way.
    """
    device = model.get_input_embeddings().weight.device
    with _recording(model) as recorders:
        body_of(model)(input_ids=tokens.to(device), use_cache=False, **arguments)
    return BlockInputs(recorders[0].hidden, [recorder.context for recorder in recorders])


def bound(block: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Hidden states, and the other arguments by name, of a call of ``block``."""
    signature = inspect.signature(block.forward)
    rest = next((name for name, each in signature.parameters.items() if each.kind == each.VAR_KEYWORD), "")
    (_, hidden), *others = signature.bind(*given, **named).arguments.items()
    context = dict(others)
    return hidden, context | context.pop(rest, {})


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

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_block"], name)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        self.hidden, self.context = bound(self.__dict__["_block"], arguments, named)
        return (self.hidden, *[None] * (self._parts - 1)) if self._parts else self.hidden


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
