"""The walk: blocks one after the other, each with its weights, and what a visitor does with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from mixprec.walk.blocks import Blocks

#: Called with a block's number, from 0, and the block with its weights in it.
Visit = Callable[[int, nn.Module], None]


def walk(opened: Blocks, order: Iterable[int], visit: Visit) -> None:
    """Visit the blocks of ``order``.

    Raises UserError where weights are NaN or infinite, or of a type that can't be computed with.
    """
    for index in order:
        with opened.block(index) as block:
            visit(index, block)
