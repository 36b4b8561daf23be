"""A key-value cache for rows that come and go: it grows in place, drops finished rows, and takes in new ones.

transformers' own cache copies everything for every token. Here a buffer is a half larger than needed, so that copies
are rare.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_ROOM = 64


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values (B, heads, length, d) as views of buffers with room behind them."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.hold(key_states, value_states)
            return self.keys, self.values
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        if end > self._buffers[0].shape[-2]:
            self.hold(self.keys, self.values, room=max(_ROOM, end // 2))
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = new
        self._show(end)
        return self.keys, self.values

    def hold(self, keys: Tensor, values: Tensor, room: int = _ROOM) -> None:
        """Take over keys and values, with ``room`` for so many more tokens."""
        length = keys.shape[-2]
        self._buffers = []
        for part in (keys, values):
            buffer = part.new_empty((*part.shape[:-2], length + room, part.shape[-1]))
            buffer[..., :length, :] = part
            self._buffers.append(buffer)
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[..., :length, :] for buffer in self._buffers)


def new_cache() -> Cache:
    """An empty cache. Layers with a sliding window keep everything too: the model's mask hides what is out of sight."""
    return Cache(layer_class_to_replicate=GrowingLayer)


def keep(cache: Cache, mask: Tensor, rows: list[int]) -> Tensor:
    """Leave only ``rows``, without padding that all of them share; gives their mask (rows, length) of ``mask``."""
    mask = mask[rows]
    first = int(mask.sum(0).ne(0).int().argmax())
    for layer in cache.layers:
        layer.hold(layer.keys[rows][..., first:, :], layer.values[rows][..., first:, :])
    return mask[:, first:]


def join(cache: Cache, mask: Tensor, new: Cache, new_mask: Tensor) -> Tensor:
    """Put the rows of ``new`` below those of ``cache``, the shorter padded on the left; gives the joint mask."""
    length = max(mask.shape[1], new_mask.shape[1])
    for layer, other in zip(cache.layers, new.layers, strict=True):
        layer.hold(
            torch.cat([_padded(layer.keys, length), _padded(other.keys, length)]),
            torch.cat([_padded(layer.values, length), _padded(other.values, length)]),
        )
    return torch.cat([_left(mask, length), _left(new_mask, length)])


def _padded(states: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(states, (0, 0, length - states.shape[-2], 0))


def _left(mask: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(mask, (length - mask.shape[1], 0))
