"""One pass over a trace: activation means and the exact gradient of every span at every watched module.

The trace goes through the model once, in chunks, without gradients; its keys and values are kept. Then the spans,
packed side by side, go through it forward and backward, each in front of its cached prefix. No parameter requires a
gradient, and logits exist for span positions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mixprec import models
from mixprec.importance.attention import KeyValueCache, PackedSpans, Prefill, trace_attention
from mixprec.importance.outputs import Layout, RowSums, SpanGradients, accumulation_dtype
from mixprec.importance.windows import Batch, Window, pack
from mixprec.modules import EMBEDDING, HEAD, NORM

__all__ = ["Job", "Layout", "TraceResult", "loss_gradient", "run_trace"]

#: Positions of the trace that go through the model at once. Bounds the transient memory of long traces.
CHUNK_TOKENS = 1024
#: Span positions that go forward and backward at once. Bounds the memory of their activations.
BATCH_TOKENS = 128
#: Span positions whose logits exist at once.
HEAD_TOKENS = 64


class Job(NamedTuple):
    """One trace: tokens (T,) ids, rows (R, T) weights of the activation sums, and windows to take gradients of."""

    tokens: Tensor
    rows: Tensor
    windows: Sequence[Window]


class TraceResult(NamedTuple):
    """What one pass over a trace gives; D = layout.size.

    row_sums: (R, D) activations summed over the trace with the given (R, tokens) row weights.
    gradients: (W, D) for each window the loss's gradient, mean over the window's positions.
    """

    row_sums: Tensor
    gradients: Tensor


def run_trace(
    model: Any,
    layout: Layout,
    tokens: Tensor,
    rows: Tensor,
    windows: Sequence[Window],
    *,
    chunk_tokens: int = CHUNK_TOKENS,
    batch_tokens: int = BATCH_TOKENS,
) -> TraceResult:
    """Attribute one trace.

    ``tokens``: (T,) ids. ``rows``: (R, T) weights of the activation sums. Exact: the gradients are those of full
    backpropagation (tests/importance/test_engine.py); accumulation in float32 or better.
    """
    with trace_attention(model):
        cache = KeyValueCache(len(tokens))
        row_sums = _prefill(model, layout, tokens, rows, cache, chunk_tokens)
        gradients = row_sums.new_zeros(len(windows), layout.size)
        for batch in pack(windows, batch_tokens):
            gradients[batch.number] = _batch_gradients(model, layout, tokens, batch, cache)
    return TraceResult(row_sums, gradients)


@torch.no_grad()
def _prefill(
    model: Any, layout: Layout, tokens: Tensor, rows: Tensor, cache: KeyValueCache, chunk_tokens: int
) -> Tensor:
    found = RowSums(layout, rows, accumulation_dtype(model))
    watched = {name: module for name, module in layout.modules.items() if name != HEAD}
    device = model.get_input_embeddings().weight.device
    for offset in range(0, len(tokens), chunk_tokens):
        state = Prefill(cache, offset, min(offset + chunk_tokens, len(tokens)), device)
        with found.watching(watched, offset):
            model.model(
                input_ids=tokens[None, offset : offset + chunk_tokens].to(device),
                position_ids=state.positions[None],
                use_cache=False,
                trace_state=state,
            )
    if HEAD in layout.modules:
        found.add_logits(layout.modules[HEAD], NORM, HEAD)
    return found.sums


def _batch_gradients(model: Any, layout: Layout, tokens: Tensor, batch: Batch, cache: KeyValueCache) -> Tensor:
    """(W, D) gradients of each window's loss, averaged over its positions."""
    found = SpanGradients(layout, batch, accumulation_dtype(model))
    watched = {name: module for name, module in layout.modules.items() if name not in (EMBEDDING, HEAD)}
    embedding = model.get_input_embeddings()
    device = embedding.weight.device
    state = PackedSpans(cache, batch, device)
    with torch.enable_grad(), found.watching(watched):
        # The embeddings' output is where autograd starts: no parameter requires a gradient.
        embedded = embedding(tokens[None, batch.positions].to(device)).requires_grad_()
        hidden = model.model(
            inputs_embeds=embedded,
            position_ids=state.positions[None],
            use_cache=False,
            trace_state=state,
        ).last_hidden_state
        gradient = loss_gradient(models.head(model), hidden.detach(), tokens, batch, found)
        (gradient,) = torch.autograd.grad(hidden, embedded, gradient)
        found.add(EMBEDDING, gradient)
    return found.result


def loss_gradient(head: models.Head, hidden: Tensor, tokens: Tensor, batch: Batch, found: SpanGradients) -> Tensor:
    """(1, Q, hidden) gradient of the sum of the windows' mean cross-entropies at final hidden states (1, Q, hidden).

    Windows don't touch one another, so the sum's gradient is each window's own. A few positions at a time: logits are
    the largest thing there is. The logits' own gradients go to ``found``.
    """
    dtype = found.result.dtype
    targets = tokens[batch.positions + 1]
    weights = (1 / batch.predicted.to(dtype))[batch.owner]
    parts = []
    for start in range(0, len(targets), HEAD_TOKENS):
        where = slice(start, start + HEAD_TOKENS)
        part = hidden[:, where].requires_grad_()
        with torch.enable_grad():
            logits = head.projection(part)
            scores = head.cap(logits)[0].to(dtype)
            losses = F.cross_entropy(scores, targets[where].to(scores.device), reduction="none")
            loss = (losses * weights[where].to(losses.device)).sum()
        gradient, logits_gradient = torch.autograd.grad(loss, (part, logits))
        found.add(HEAD, logits_gradient, where)
        parts.append(gradient)
    return torch.cat(parts, dim=1)
