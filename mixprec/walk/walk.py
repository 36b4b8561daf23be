"""The walk: blocks one after the other, each with its weights, and what a visitor does with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import zip_longest

import psutil
import torch
from torch import Tensor, nn

from mixprec.walk.blocks import Blocks, Live

#: The next block's weights are read ahead where so many blocks would fit into what is free: work on one takes memory.
_SPARE = 4

#: Called with a block's number, from 0, and the block with its weights in it.
Visit = Callable[[int, nn.Module], None]


def walk(opened: Blocks | Live, order: Iterable[int], visit: Visit) -> None:
    """Visit the blocks of ``order``. Of weights on disk, the next block's are read while a visitor works.

    Raises UserError where weights are NaN or infinite, or of a type that can't be computed with.
    """
    numbers = list(order)
    if isinstance(opened, Live):
        for index in numbers:
            with opened.block(index) as block:
                visit(index, block)
        return
    with ThreadPoolExecutor(1, "weights") as reader:
        ahead: Future[dict[str, Tensor]] | None = None
        for index, following in zip_longest(numbers, numbers[1:]):
            weights = opened.read(index) if ahead is None else ahead.result()
            size = sum(tensor.nbytes for tensor in weights.values())
            go_on = following is not None and _room(opened.device) > _SPARE * size
            ahead = reader.submit(opened.read, following) if go_on else None
            with opened.block(index, weights) as block:
                del weights  # the block's are gone when it is left
                visit(index, block)


def _room(device: str) -> float:
    """Free bytes where weights go."""
    where = torch.device(device)
    return float(torch.cuda.mem_get_info(where)[0] if where.type == "cuda" else psutil.virtual_memory().available)
