"""One pass over a trace: activation means and the exact gradient of every span at every watched module.

The trace goes through the model once, in chunks, without gradients; its keys and values are kept. Then the spans,
packed side by side, go through it forward and backward, each in front of its cached prefix. No parameter requires a
gradient, logits exist for span positions only, and a window of any length goes through in parts of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixprec.core.memory import release_memory
from mixprec.importance.attention import KeyValueCache, PackedSpans, Prefill, trace_attention
from mixprec.importance.outputs import Gradients, Layout, RowSums, SpanGradients, accumulation_dtype
from mixprec.importance.paths import alike, path_of
from mixprec.importance.spans import Modules, Prefix, SpanForward, Way, leaves
from mixprec.importance.windows import Batch, Window, alone, pack
from mixprec.models.decoder import Decoder
from mixprec.models.head import Head
from mixprec.models.weights import body_of, map_in
from mixprec.walk.blocks import Live

__all__ = ["Gradients", "Job", "Layout", "loss_gradient", "run_trace"]

#: Positions of the trace that go through the model at once. Bounds the transient memory of long traces.
CHUNK_TOKENS = 512
#: Span positions that go forward and backward at once. Bounds the memory of their activations.
BATCH_TOKENS = 48
#: Span positions whose logits exist at once.
HEAD_TOKENS = 32


class Job(NamedTuple):
    """One trace: tokens (T,) ids, rows (R, T) weights of the activation sums, and windows to take gradients of."""

    tokens: Tensor
    rows: Tensor
    windows: Sequence[Window]


def run_trace(
    model: Any,
    layout: Layout,
    job: Job,
    gradients: Gradients,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
    batch_tokens: int = BATCH_TOKENS,
) -> Tensor:
    """Attribute one trace: returns the activation sums (R, layout.size), and gives the spans' to ``gradients``.

    Exact: the gradients are those of full backpropagation (tests/importance/test_engine.py); accumulation in float32
    or better.
    """
    decoder, chosen = map_in(model), path_of(Live(model))
    if chosen.path != "packed":
        return _one_by_one(model, decoder, layout, job, gradients, chosen.path, chosen.theirs)
    with trace_attention(model):
        cache = KeyValueCache(len(job.tokens))
        row_sums = _prefill(model, decoder, layout, job, cache, chunk_tokens)
        for batch in pack(job.windows, batch_tokens):
            release_memory()
            gradients.add(batch.number, _batch_gradients(model, decoder, layout, job.tokens, batch, cache))
    return row_sums


@torch.no_grad()
def _prefill(model: Any, decoder: Decoder, layout: Layout, job: Job, cache: KeyValueCache, chunk_tokens: int) -> Tensor:
    found, tokens = RowSums(layout, job.rows, accumulation_dtype(model)), job.tokens
    watched = {name: module for name, module in layout.modules.items() if name != decoder.head}
    device = model.get_input_embeddings().weight.device
    for offset in range(0, len(tokens), chunk_tokens):
        state = Prefill(cache, offset, min(offset + chunk_tokens, len(tokens)), device)
        with found.watching(watched, offset):
            body_of(model)(
                input_ids=tokens[None, offset : offset + chunk_tokens].to(device),
                position_ids=state.positions[None],
                use_cache=False,
                trace_state=state,
            )
    if decoder.head in layout.modules:
        found.add_logits(layout.modules[decoder.head], decoder.norm, decoder.head)
    return found.sums


def _batch_gradients(
    model: Any, decoder: Decoder, layout: Layout, tokens: Tensor, batch: Batch, cache: KeyValueCache
) -> dict[str, Tensor]:
    """Of every module the gradients (W, d) of each window's loss, averaged over the window's positions."""
    found = SpanGradients(layout, batch, accumulation_dtype(model))
    watched = {n: module for n, module in layout.modules.items() if n not in (decoder.embedding, decoder.head)}
    device = model.get_input_embeddings().weight.device
    state = PackedSpans(cache, batch, device)
    with torch.enable_grad(), leaves(model) as embedded, found.watching(watched):
        hidden = body_of(model)(
            input_ids=tokens[None, batch.positions].to(device),
            position_ids=state.positions[None],
            use_cache=False,
            trace_state=state,
        ).last_hidden_state
        gradient = loss_gradient(Head.of(model), decoder.head, hidden.detach(), tokens, batch, found)
        found.add(decoder.embedding, SpanForward(embedded, hidden).gradient(gradient))
    return found.take()


def _one_by_one(
    model: Any, decoder: Decoder, layout: Layout, job: Job, gradients: Gradients, way: Way, theirs: bool
) -> Tensor:
    """run_trace where spans can't be packed: a pass over the trace, then each span behind its prefix (spans.py)."""
    sums = RowSums(layout, job.rows, accumulation_dtype(model))
    watched = {name: module for name, module in layout.modules.items() if name != decoder.head}
    device = model.get_input_embeddings().weight.device
    with torch.no_grad(), sums.watching(watched, 0):
        hidden = body_of(model)(input_ids=job.tokens[None].to(device), use_cache=False).last_hidden_state
    if decoder.head in layout.modules:
        with torch.no_grad():
            sums.add_logits(layout.modules[decoder.head], decoder.norm, decoder.head)
    watched.pop(decoder.embedding, None)
    prefix = Prefix(model, job.tokens, theirs=theirs)
    for number in sorted(range(len(job.windows)), key=lambda number: job.windows[number][1:]):
        if job.windows[number].compute:
            release_memory()
            batch = alone(job.windows, number)
            made, found = _behind(model, prefix, layout, batch, watched, way, hidden)
            gradient = loss_gradient(Head.of(model), decoder.head, made.hidden.detach(), job.tokens, batch, found)
            found.add(decoder.embedding, made.gradient(gradient))
            gradients.add(batch.number, found.take())
    return sums.sums


def _behind(
    model: Any, prefix: Prefix, layout: Layout, batch: Batch, watched: Modules, way: Way, whole: Tensor
) -> tuple[SpanForward, SpanGradients]:
    """A span forward, made its way or, where that doesn't give the final hidden states of the ``whole`` pass (1, T,
    hidden), as a part of a whole one."""
    first, end = int(batch.positions[0]), int(batch.positions[-1]) + 1
    ways: dict[Way, None] = {way: None, "whole": None}
    for tried in ways:
        found = SpanGradients(layout, batch, accumulation_dtype(model))
        made = prefix.span(tried, first, end, found, watched)
        if alike(made.hidden, whole[:, first:end]):
            break
    return made, found


def loss_gradient(head: Head, name: str, hidden: Tensor, tokens: Tensor, batch: Batch, found: SpanGradients) -> Tensor:
    """(1, Q, hidden) gradient of the sum of the windows' mean cross-entropies at final hidden states (1, Q, hidden).

    Windows don't touch one another, so the sum's gradient is each window's own. A few positions at a time: logits are
    the largest thing there is. The logits' own gradients go to ``found``, under the head's ``name``.
    """
    targets = tokens[batch.positions + 1]
    weights = (1 / batch.predicted.to(found.dtype))[batch.owner]
    parts: list[Tensor] = []
    for start in range(0, len(targets), HEAD_TOKENS):
        where = slice(start, start + HEAD_TOKENS)
        part = hidden[:, where].requires_grad_()
        with torch.enable_grad():
            logits = head.projection(part)
        at_logits = _at_logits(head, logits.detach()[0], targets[where], weights[where])[None]
        found.add(name, at_logits, where)
        parts += torch.autograd.grad(logits, part, at_logits.to(logits.dtype))
    return torch.cat(parts, dim=1)


def _at_logits(head: Head, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """(n, vocabulary) gradient of the weighted cross-entropies (n,) at logits, before a soft cap: softmax - one-hot.

    By hand, because autograd would keep four tensors of this size.
    """
    targets, weights = targets.to(logits.device), weights.to(logits.device)
    scores = head.cap(logits).to(weights.dtype)
    gradient = torch.softmax(scores, dim=-1)
    gradient[torch.arange(len(targets)), targets] -= 1
    gradient *= weights[:, None] * head.scale
    return gradient if head.softcap is None else gradient * (1 - (scores / head.softcap) ** 2)
