"""What blocks are given besides hidden states, for samples of one length: rotary embeddings, masks, and the like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from mixprec.core.errors import UserError
from mixprec.walk import blocks


class Contexts:
    """Each block's other arguments, for micro-batches of samples (N, T).

    They are made once where they are the same for all samples, anew for each number of samples where they have rows for
    each (ALiBi), and for each micro-batch where they depend on its tokens (Gemma's embeddings per layer).
    """

    def __init__(self, model: Any, tokens: Tensor, batches: Sequence[slice]) -> None:
        """``batches``: which samples each micro-batch has."""
        self._by_batch: dict[int, list[dict[str, Any]]] = {}
        self._by_count: dict[int, list[dict[str, Any]]] = {}
        self._multiplied = False
        self._shared = blocks.block_inputs(model, tokens[:1]).contexts
        if len(tokens) == 1:
            return
        if not _equal(self._shared, blocks.block_inputs(model, tokens[1:2]).contexts):
            self._by_batch = {
                number: blocks.block_inputs(model, tokens[where]).contexts for number, where in enumerate(batches)
            }
            return
        one, two = _rows(self._shared), _rows(blocks.block_inputs(model, tokens[:2]).contexts)
        if one != two:
            # A single row does for any number of samples.
            self._multiplied = any(first not in (1, second) for first, second in zip(one, two, strict=True))
            counts = {len(tokens[where]) for where in batches}
            self._by_count = {count: blocks.block_inputs(model, tokens[:count]).contexts for count in counts}

    def of(self, index: int, number: int, count: int) -> dict[str, Any]:
        """The arguments of the model's block number ``index`` for micro-batch ``number``, of ``count`` samples."""
        return (self._by_batch.get(number) or self._by_count.get(count) or self._shared)[index]

    def any(self, index: int, count: int) -> dict[str, Any]:
        """The same for any samples, so many of them.

        Raises UserError where the arguments depend on which samples these are.
        """
        if self._by_batch or (self._multiplied and count not in self._by_count):
            raise UserError(
                "this model's blocks are given something of each sample besides hidden states; mixed samples can't be "
                "tuned block by block, leave out tune_blocks"
            )
        return self.of(index, 0, count)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | Mapping):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(each)


def _equal(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> bool:
    both = [list(_tensors([list(each.values()) for each in contexts])) for contexts in (one, other)]
    return len(both[0]) == len(both[1]) and all(first.equal(second) for first, second in zip(*both, strict=True))


def _rows(contexts: Sequence[dict[str, Any]]) -> list[int]:
    """Rows of all tensors among the arguments."""
    return [value.shape[0] for context in contexts for value in _tensors(list(context.values())) if value.ndim]
