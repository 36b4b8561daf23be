"""Attention of many spans of one trace at once, each in front of its own cached prefix.

The spans' tokens lie packed in one row. A query of a span sees the cached keys of the trace before its span, which
are constants, and the keys of its own span up to itself, through which gradients flow. So every path from an
activation in a span to the loss of that span is kept, and nothing else is computed (docs/importance.md).
Registered with transformers under ``IMPLEMENTATION``; the state comes as the keyword argument ``trace_state``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from mixprec.core.upstream import quiet
from mixprec.importance.windows import Batch
from mixprec.models.weights import body_of

IMPLEMENTATION = "mixprec_trace"
#: Keys of the prefix that a backward pass sees at once.
_KEYS = 1024


class KeyValueCache:
    """Keys and values of one trace, every layer: two tensors (1, key/value heads, tokens, head size) each.

    Of a window that is cut, ``carried`` holds in between the gradients at the keys and values of its positions so far.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.carried: dict[int, tuple[Tensor, Tensor]] = {}
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, offset: int, key: Tensor, value: Tensor) -> None:
        """Store a chunk (1, heads, chunk, size) at ``offset``."""
        if layer not in self._layers:
            shape = (*key.shape[:2], self.tokens, key.shape[3])
            self._layers[layer] = (key.new_empty(shape), value.new_empty(shape))
        for store, chunk in zip(self._layers[layer], (key, value), strict=True):
            store[:, :, offset : offset + chunk.shape[2]] = chunk

    def read(self, layer: int, where: slice) -> tuple[Tensor, Tensor]:
        """Views of the keys and values of some positions."""
        key, value = self._layers[layer]
        return key[:, :, where], value[:, :, where]

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
            keys, values = self.cache.read(layer, slice(end))
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
        prefix_key, prefix_value = self.cache.read(layer, slice(self.offset))
        folded, folded_lse = _flash(_fold(query, prefix_key), prefix_key, prefix_value, how)
        return _merge((own, own_lse), (_unfold(folded, query), folded_lse.reshape(own_lse.shape)))[0]

    def _mask(self, window: int, end: int, device: torch.device) -> Tensor:
        """(chunk, end) true where a query sees a key; built once per kind of layer, and device of several."""
        if (window, device) not in self._masks:
            keys = torch.arange(end, device=device)
            distance = self.positions.to(device)[:, None] - keys[None, :]
            self._masks[window, device] = (distance >= 0) & (distance < window)
        return self._masks[window, device]


class PackedSpans:
    """State of a pass over a packed batch of spans of a trace whose cache is filled.

    What a query sees: the prefix of its own window, which is constant, and its window up to itself. The window's
    positions before this batch come from the cache, and the gradients at them are carried to their own batch.
    """

    def __init__(self, cache: KeyValueCache, batch: Batch, device: torch.device) -> None:
        self.cache = cache
        self.positions = batch.positions.to(device)
        self._batch = batch
        self._last = int(batch.positions.max())
        self._masks: dict[tuple[int | None, int, int, torch.device], Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, window: int | None, how: Scores) -> Tensor:
        """Attention (1, heads, Q, size) of every span to its own prefix and to itself."""
        if window is not None and window > self._last:
            window = None
        return _unfold(_Behind.apply(_fold(query, key), key, value, self, layer, window, how), query)  # type: ignore[no-untyped-call]

    def split(self, layer: int, window: int | None, fused: bool) -> tuple[tuple[Tensor, Tensor] | None, slice]:
        """Keys and values that every query sees (None: not worth it or not possible), and the prefix's other positions.

        Without a mask and without a copy: nearly all of a long prefix.
        """
        common, prefix = int(self._batch.starts.min()), int(self._batch.starts.max())
        if window is not None:
            return None, slice(min(prefix, max(0, int(self._batch.positions.min()) - window + 1)), prefix)
        if not fused or not common:
            return None, slice(0, prefix)
        return self.cache.read(layer, slice(common)), slice(common, prefix)

    def near(self, layer: int, key: Tensor, value: Tensor, rest: slice) -> tuple[Tensor, Tensor]:
        """Keys and values of the positions ``rest``, of the cut window's earlier positions and of the batch itself."""
        parts = [self.cache.read(layer, where) for where in (rest, self._batch.earlier)]
        keys, values = (torch.cat(each, dim=2) for each in zip(*parts, (key, value), strict=True))
        return keys, values

    def mask(self, window: int | None, rest: slice, share: int, like: Tensor) -> Tensor:
        """(share * Q, near keys) 0 where a query sees a key, else -inf; built once per kind of layer, and device."""
        which = (window, rest.start, share, like.device)
        if which not in self._masks:
            batch, positions = self._batch, self.positions.to(like.device)
            owner, starts = batch.owner.to(like.device), batch.starts.to(like.device)
            before, earlier = (torch.arange(s.start, s.stop, device=like.device) for s in (rest, batch.earlier))
            causal = positions[:, None] >= positions[None, :]
            seen = [
                before[None, :] < starts[owner][:, None],
                (owner == 0)[:, None].expand(-1, len(earlier)),
                (owner[:, None] == owner[None, :]) & causal,
            ]
            mask = torch.cat(seen, dim=1)
            if window is not None:
                mask &= positions[:, None] - torch.cat([before, earlier, positions])[None, :] < window
            bias = torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(~mask, -torch.inf)
            self._masks[which] = bias.repeat(share, 1)
        return self._masks[which]

    def carry(self, layer: int, near: Sequence[Tensor]) -> list[Tensor]:
        """Gradients at the batch's own keys and values, out of those at the ``near`` ones.

        What the batch before left for its last window's keys is added; what belongs to earlier positions is left for
        the batch to come.
        """
        earlier = self._batch.earlier.stop - self._batch.earlier.start
        reach = [gradient[:, :, -earlier - len(self.positions) :] for gradient in near]
        for gradient, later in zip(reach, self.cache.carried.pop(layer, ()), strict=False):
            gradient[:, :, -later.shape[2] :] += later
        if earlier:
            key, value = (gradient[:, :, :earlier].clone() for gradient in reach)
            self.cache.carried[layer] = key, value
        return [gradient[:, :, earlier:] for gradient in reach]


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
    """Attention of folded queries under a mask (Q, keys): false, or -inf, where a query doesn't see a key."""
    mask = mask.repeat(query.shape[2] // len(mask), 1)
    if how.softcap is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=how.scaling)
    scores = torch.tanh(query @ key.transpose(2, 3) * how.scaling / how.softcap) * how.softcap
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
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


def _merge(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Attention to two sets of keys together, from that to each: outputs and log-sum-exps."""
    total = torch.logaddexp(one[1], other[1])
    first, second = (out * torch.exp(lse - total)[..., None] for out, lse in (one, other))
    return (first + second).to(one[0].dtype), total


class _Behind(torch.autograd.Function):
    """Attention of packed spans; keeps no copy of the prefix for the backward pass, and computes no gradient at it."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        spans: PackedSpans,
        layer: int,
        window: int | None,
        how: Scores,
    ) -> Tensor:
        fused = _has_flash(query) and how.softcap is None
        common, rest = spans.split(layer, window, fused)
        near = spans.near(layer, key, value, rest)
        mask = spans.mask(window, rest, query.shape[2] // key.shape[2], query)
        if fused:
            out, lse = _flash(query, near[0], near[1], how, bias=mask)
            if common:
                out, lse = _merge((out, lse), _flash(query, common[0], common[1], how))
        else:
            out, lse = _masked(query, near[0], near[1], mask, how), None
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.rest = (spans, layer, how, common, rest, mask)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        query, key, value, out, lse = ctx.saved_tensors
        spans, layer, how, common, rest, mask = ctx.rest
        near = spans.near(layer, key, value, rest)
        if lse is None:
            with torch.enable_grad():
                leaf, keys, values = (tensor.detach().requires_grad_() for tensor in (query, *near))
                again = _masked(leaf, keys, values, mask, how)
                d_query, *d_near = torch.autograd.grad(again, (leaf, keys, values), gradient)
        else:
            # With the output and log-sum-exp of all keys, gradients over a part of the keys are parts of the whole.
            d_query, *d_near = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                gradient, query, *near, out, lse, 0.0, False, attn_mask=mask, scale=how.scaling
            )
            if common:
                d_query += _query_gradient(gradient, query, common, out, lse, how)
        return d_query, *spans.carry(layer, d_near), None, None, None, None


def _query_gradient(
    gradient: Tensor, query: Tensor, keys: tuple[Tensor, Tensor], out: Tensor, lse: Tensor, how: Scores
) -> Tensor:
    """Gradient at the queries of attention to keys and values that need none, some keys at a time.

    The fused kernel would compute all three, and keep copies as large as the prefix. With weights p = exp(score - lse):
    d score = p (gradient · value - gradient · out).
    """
    scaled, upstream = query.to(lse.dtype) * how.scaling, gradient.to(lse.dtype)
    mean = (upstream * out).sum(-1, keepdim=True)
    found = torch.zeros_like(scaled)
    for key, value in zip(*(tensor.split(_KEYS, dim=2) for tensor in keys), strict=True):
        key = key.to(lse.dtype)
        weights = (scaled @ key.transpose(2, 3)).sub_(lse[..., None]).exp_()
        weights *= (upstream @ value.to(lse.dtype).transpose(2, 3)).sub_(mean)
        found += weights @ key
    return found.mul_(how.scaling).to(query.dtype)


class NotPacked(Exception):
    """A model's attention isn't one that packed spans are computed with; says why."""


#: What models hand to any attention, and what this one has by itself.
_KNOWN: Final = frozenset({
    "position_ids", "use_cache", "cache_position", "output_attentions", "output_hidden_states", "output_router_logits",
    "return_dict", "past_key_values",
})  # fmt: skip


def not_known(others: Mapping[str, Any]) -> list[str]:
    """Which of the arguments that an attention is called with besides say something that this one doesn't compute."""
    return [name for name, said in others.items() if name not in _KNOWN and not (said is None or said is False)]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    trace_state: Prefill | PackedSpans | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface; the mask is ours, so ``attention_mask`` is None and dropout is off.

    Raises NotPacked for what this attention doesn't compute.
    """
    if trace_state is None:
        raise NotPacked("the model doesn't hand on what it is called with")
    strange = not_known(others)
    if strange or attention_mask is not None or dropout:
        raise NotPacked(f"its attention has {', '.join(strange) or 'a mask of its own or dropout'}")
    layer: Any = getattr(module, "layer_idx", None)
    wider = query.shape[3] - value.shape[3]
    if layer is None or wider < 0 or key.shape[3] != query.shape[3] or query.shape[1] % key.shape[1]:
        raise NotPacked(f"its attention has queries, keys and values of {query.shape}, {key.shape}, {value.shape}")
    how = Scores(query.shape[3] ** -0.5 if scaling is None else scaling, softcap)
    # Zeros beside the values put zeros beside the output: kernels want keys and values of one width.
    value = F.pad(value, (0, wider)) if wider else value
    out = trace_state.attend(layer, query, key, value, sliding_window, how)
    return (out[..., : out.shape[3] - wider] if wider else out).transpose(1, 2), None


AttentionInterface.register(IMPLEMENTATION, _attention)


@contextmanager
def trace_attention(model: Any) -> Iterator[None]:
    """Let ``model`` use this attention inside the block."""
    with using(model, IMPLEMENTATION):
        yield


@contextmanager
def using(model: Any, implementation: str) -> Iterator[None]:
    """Let ``model`` use an attention that transformers knows by name.

    Raises NotPacked for a model whose attention can't be chosen.
    """
    before = model.config._attn_implementation
    with quiet():  # it warns where it does nothing
        model.set_attn_implementation(implementation)
    try:
        if body_of(model).config._attn_implementation != implementation:
            raise NotPacked("its attention isn't one of those that transformers lets be chosen")
        yield
    finally:
        with quiet():
            model.set_attn_implementation(before)
