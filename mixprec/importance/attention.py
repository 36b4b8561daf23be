"""Attention of many spans of one trace at once, each in front of its own cached prefix.

The spans' tokens lie packed in one row. A query of a span sees the cached keys of the trace before its span, which
are constants, and the keys of its own span up to itself, through which gradients flow. So every path from an
activation in a span to the loss of that span is kept, and nothing else is computed (docs/importance.md).
Registered with transformers under ``IMPLEMENTATION``; the state comes as the keyword argument ``trace_state``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

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
    """State of a pass over the trace's tokens [offset, end), which fills the cache.

    Layers may lie on several devices; ``device`` is the embeddings', where the positions are needed first.
    """

    def __init__(self, cache: KeyValueCache, offset: int, end: int, device: torch.device) -> None:
        self.cache = cache
        self.offset = offset
        self.positions = torch.arange(offset, end, device=device)
        self._masks: dict[tuple[int, torch.device], Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int | None, how: Scores) -> Tensor:
        """Attention (1, heads, chunk, size) of the chunk to everything up to itself."""
        self.cache.write(layer, self.offset, key, value)
        end = self.offset + query.shape[2]
        windowed = window is not None and window < end
        if windowed or how.softcap is not None or (self.offset and not _has_flash(query)):
            keys, values = self.cache.read(layer, end)
            return _unfold(
                _masked(_fold(query, keys), keys, values, self._mask(window or end, end, query.device), how), query
            )
        if not self.offset:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=how.scaling, enable_gqa=True)
        # The causal chunk and the whole prefix apart: neither needs a mask, which costs half as much again.
        share = query.shape[1] // key.shape[1]
        own, own_lse = _flash(
            query, key.repeat_interleave(share, 1), value.repeat_interleave(share, 1), how, causal=True
        )
        prefix_key, prefix_value = self.cache.read(layer, self.offset)
        folded, folded_lse = _flash(_fold(query, prefix_key), prefix_key, prefix_value, how)
        prefix_lse = folded_lse.reshape(own_lse.shape)
        total = torch.logaddexp(own_lse, prefix_lse)
        prefix = _unfold(folded, query)
        merged = own * torch.exp(own_lse - total)[..., None] + prefix * torch.exp(prefix_lse - total)[..., None]
        return merged.to(query.dtype)

    def _mask(self, window: int, end: int, device: torch.device) -> Tensor:
        """(chunk, end) true where a query sees a key; built once per kind of layer, and device of several."""
        if (window, device) not in self._masks:
            keys = torch.arange(end, device=device)
            distance = self.positions.to(device)[:, None] - keys[None, :]
            self._masks[window, device] = (distance >= 0) & (distance < window)
        return self._masks[window, device]


class PackedSpans:
    """State of a pass over a packed batch of spans of a trace whose cache is filled."""

    def __init__(self, cache: KeyValueCache, batch: Batch, device: torch.device) -> None:
        self.cache = cache
        self.positions = batch.positions.to(device)
        self._owner = batch.owner
        self._starts = batch.starts[batch.owner]
        self._prefix = int(batch.starts.max())
        self._masks: dict[tuple[int | None, int, torch.device], Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int | None, how: Scores) -> Tensor:
        """Attention (1, heads, Q, size) of every span to its own prefix and to itself."""
        prefix = self.cache.read(layer, self._prefix)
        folded = _fold(query, key)
        if _has_flash(query) and how.softcap is None:
            bias = self._mask(window, query.shape[1] // key.shape[1], query.device, query.dtype)
            out: Tensor = _FlashBehindPrefix.apply(folded, key, value, *prefix, bias, how)  # type: ignore[no-untyped-call]
            return _unfold(out, query)
        mask = self._mask(window, 1, query.device)

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = (torch.cat(pair, dim=2) for pair in zip(prefix, (key, value), strict=True))
            return _masked(query, keys, values, mask, how)

        # Recomputed in the backward pass, else autograd would keep a copy of the prefix for every layer.
        out = checkpoint(attend, folded, key, value, use_reentrant=False, preserve_rng_state=False)
        return _unfold(out, query)

    def _mask(self, window: int | None, share: int, device: torch.device, bias: torch.dtype | None = None) -> Tensor:
        """(share * Q, prefix + Q), true (as a bias: 0, else -inf) where a query sees a key; built once per
        kind of layer, and device of several."""
        if (window, share, device) not in self._masks:
            positions, owner = self.positions.to(device), self._owner.to(device)
            keys = torch.arange(self._prefix, device=device)
            before = keys[None, :] < self._starts.to(device)[:, None]
            same = owner[:, None] == owner[None, :]
            own = same & (positions[:, None] >= positions[None, :])
            mask = torch.cat([before, own], dim=1)
            if window is not None:
                distance = positions[:, None] - torch.cat([keys, positions])[None, :]
                mask &= distance < window
            if bias is not None:
                mask = torch.zeros(mask.shape, dtype=bias, device=device).masked_fill_(~mask, -torch.inf)
                mask = mask.repeat(share, 1)
            self._masks[window, share, device] = mask
        return self._masks[window, share, device]


class Scores(NamedTuple):
    """How scores are made: query times key times ``scaling``, soft-capped (Gemma 2) or not."""

    scaling: float
    softcap: float | None


def _fold(query: Tensor, key: Tensor) -> Tensor:
    """(1, heads, Q, size) -> (1, key heads, share * Q, size): the heads that share a key head lie side by side as
    queries, so that keys and values are never repeated."""
    return query.reshape(1, key.shape[1], -1, query.shape[3])


def _unfold(out: Tensor, query: Tensor) -> Tensor:
    return out.reshape(query.shape)


def _masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, how: Scores) -> Tensor:
    """Attention of folded queries under a mask (Q, keys)."""
    mask = mask.repeat(query.shape[2] // len(mask), 1)
    if how.softcap is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=how.scaling)
    scores = torch.tanh(query @ key.transpose(2, 3) * how.scaling / how.softcap) * how.softcap
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~mask, -torch.inf)
    return torch.softmax(scores, dim=-1).to(value.dtype) @ value


def _has_flash(query: Tensor) -> bool:
    """Whether torch's fused kernel that also gives log-sum-exps is there: on CPU. Elsewhere a mask does it."""
    return query.device.type == "cpu"


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    how: Scores,
    *,
    causal: bool = False,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Fused attention and its log-sum-exp (1, heads, Q)."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=bias, scale=how.scaling
    )
    return out, lse


class _FlashBehindPrefix(torch.autograd.Function):
    """Fused attention to constant prefix keys and to own keys, which keeps no copy of the prefix for backward."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        prefix_key: Tensor,
        prefix_value: Tensor,
        bias: Tensor,
        how: Scores,
    ) -> Tensor:
        keys, values = torch.cat([prefix_key, key], dim=2), torch.cat([prefix_value, value], dim=2)
        out, lse = _flash(query, keys, values, how, bias=bias)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.prefix, ctx.bias, ctx.how = (prefix_key, prefix_value), bias, how
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        query, key, value, out, lse = ctx.saved_tensors
        prefix_key, prefix_value = ctx.prefix
        keys, values = torch.cat([prefix_key, key], dim=2), torch.cat([prefix_value, value], dim=2)
        d_query, d_keys, d_values = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, query, keys, values, out, lse, 0.0, False, attn_mask=ctx.bias, scale=ctx.how.scaling
        )
        own = slice(prefix_key.shape[2], None)
        return d_query, d_keys[:, :, own], d_values[:, :, own], None, None, None, None


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
    out = trace_state.attend(layer, query, key, value, sliding_window, Scores(scaling, softcap))
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
