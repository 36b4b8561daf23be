"""Attention of many spans of one trace at once, each in front of its own cached prefix.

The spans' tokens lie packed in one row. A query of a span sees the cached keys of the trace before its span, which
are constants, and the keys of its own span up to itself, through which gradients flow. So every path from an
activation in a span to the loss of that span is kept, and nothing else is computed (docs/importance.md).
Registered with transformers under ``IMPLEMENTATION``; the state comes as the keyword argument ``trace_state``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from mixprec.importance.windows import Batch

IMPLEMENTATION = "mixprec_trace"


class KeyValueCache:
    """Keys and values of one trace, every layer: two tensors (1, key/value heads, tokens, head size) each."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, offset: int, key: Tensor, value: Tensor) -> None:
        """Store a chunk (1, heads, chunk, size) at ``offset``."""
        if layer not in self._layers:
            shape = (*key.shape[:2], self.tokens, key.shape[3])
            self._layers[layer] = (key.new_empty(shape), value.new_empty(shape))
        for store, chunk in zip(self._layers[layer], (key, value), strict=True):
            store[:, :, offset : offset + chunk.shape[2]] = chunk

    def read(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """Views of the first ``end`` keys and values."""
        key, value = self._layers[layer]
        return key[:, :, :end], value[:, :, :end]

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(t.nbytes for pair in self._layers.values() for t in pair)


class Prefill:
    """State of a pass over the trace's tokens [offset, end), which fills the cache."""

    def __init__(self, cache: KeyValueCache, offset: int, end: int, device: torch.device) -> None:
        self.cache = cache
        self.offset = offset
        self.positions = torch.arange(offset, end, device=device)
        self._masks: dict[int | None, Tensor] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int | None, **how: Any
    ) -> Tensor:
        self.cache.write(layer, self.offset, key, value)
        end = self.offset + query.shape[2]
        if self.offset == 0 and (window is None or window >= end) and how["softcap"] is None:
            return F.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=how["scaling"], enable_gqa=True
            )
        key, value = self.cache.read(layer, end)
        return _attend(query, key, value, self._mask(window, end), **how)

    def _mask(self, window: int | None, end: int) -> Tensor:
        if window not in self._masks:
            keys = torch.arange(end, device=self.positions.device)
            distance = self.positions[:, None] - keys[None, :]
            mask = distance >= 0
            self._masks[window] = mask if window is None else mask & (distance < window)
        return self._masks[window]


class PackedSpans:
    """State of a pass over a packed batch of spans of a trace whose cache is filled."""

    def __init__(self, cache: KeyValueCache, batch: Batch, device: torch.device) -> None:
        self.cache = cache
        self.positions = batch.positions.to(device)
        self._owner = batch.owner.to(device)
        self._starts = batch.starts.to(device)[self._owner]
        self._prefix = int(batch.starts.max())
        self._masks: dict[int | None, Tensor] = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int | None, **how: Any
    ) -> Tensor:
        prefix_key, prefix_value = self.cache.read(layer, self._prefix)
        mask = self._mask(window)

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys = torch.cat([prefix_key, key], dim=2)
            values = torch.cat([prefix_value, value], dim=2)
            return _attend(query, keys, values, mask, **how)

        # Recomputed in the backward pass, else autograd would keep a copy of the prefix for every layer.
        result: Tensor = checkpoint(attend, query, key, value, use_reentrant=False, preserve_rng_state=False)
        return result

    def _mask(self, window: int | None) -> Tensor:
        """(Q, prefix + Q) true where a query sees a key; built once per kind of layer."""
        if window not in self._masks:
            keys = torch.arange(self._prefix, device=self.positions.device)
            before = keys[None, :] < self._starts[:, None]
            same = self._owner[:, None] == self._owner[None, :]
            own = same & (self.positions[:, None] >= self.positions[None, :])
            mask = torch.cat([before, own], dim=1)
            if window is not None:
                distance = self.positions[:, None] - torch.cat([keys, self.positions])[None, :]
                mask &= distance < window
            self._masks[window] = mask
        return self._masks[window]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scaling: float, softcap: float | None
) -> Tensor:
    """Masked attention (1, heads, Q, size); query heads that share a key head are laid side by side as queries, so
    that keys and values are never repeated."""
    _, heads, queries, size = query.shape
    key_heads = key.shape[1]
    share = heads // key_heads
    folded = query.reshape(1, key_heads, share * queries, size)
    mask = mask.repeat(share, 1)
    if softcap is None:
        out = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    else:
        scores = torch.tanh(folded @ key.transpose(2, 3) * scaling / softcap) * softcap
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        out = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(
            value.dtype
        ) @ value
    return out.reshape(1, heads, queries, size)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    trace_state: Prefill | PackedSpans,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface; the mask is ours, so ``attention_mask`` is None and dropout is off."""
    layer: Any = module.layer_idx
    out = trace_state.attend(layer, query, key, value, sliding_window, scaling=scaling, softcap=softcap)
    return out.transpose(1, 2), None


AttentionInterface.register(IMPLEMENTATION, _attention)


@contextmanager
def trace_attention(model: Any) -> Iterator[None]:
    """Let ``model`` use this attention inside the block."""
    before = model.config._attn_implementation
    model.set_attn_implementation(IMPLEMENTATION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
