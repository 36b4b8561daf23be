"""One pass over a trace: activation means and the exact gradient of every span at every linear module.

The trace goes through the model once, in chunks, without gradients; its keys and values are kept. Then the spans,
packed side by side, go through it forward and backward, each in front of its cached prefix. No parameter requires a
gradient, and logits exist for span positions only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixprec import models
from mixprec.importance.attention import KeyValueCache, PackedSpans, Prefill, trace_attention
from mixprec.importance.windows import Batch, Window, pack

#: Positions of the trace that go through the model at once. Bounds the transient memory of long traces.
CHUNK_TOKENS = 1024
#: Span positions that go forward and backward at once. Bounds the memory of their activations.
BATCH_TOKENS = 128
#: Span positions whose logits exist at once.
HEAD_TOKENS = 64


class Layout:
    """Where each hooked module's output lies in one long vector of length ``size``; names in order of execution."""

    def __init__(self, modules: Mapping[str, nn.Module], widths: Mapping[str, int]) -> None:
        self.modules = dict(modules)
        self.slices: dict[str, slice] = {}
        self.size = 0
        for name in self.modules:
            self.slices[name] = slice(self.size, self.size + widths[name])
            self.size += widths[name]

    @classmethod
    def of_linears(cls, linears: Mapping[str, nn.Linear]) -> Layout:
        """The layout of linear modules' outputs, (sum of d_out,)."""
        return cls(linears, {name: linear.out_features for name, linear in linears.items()})


class TraceResult(NamedTuple):
    """What one pass over a trace gives; D = layout.size.

    row_sums: (R, D) activations summed over the trace with the given (R, tokens) row weights.
    gradients: (W, D) for each window the loss's gradient, mean over the window's positions.
    """

    row_sums: Tensor
    gradients: Tensor


def accumulation_dtype(model: Any) -> torch.dtype:
    """float32 for everything but float64 models."""
    return torch.promote_types(next(model.parameters()).dtype, torch.float32)


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
    dtype = accumulation_dtype(model)
    sums = torch.zeros(len(rows), layout.size, dtype=dtype)
    for offset in range(0, len(tokens), chunk_tokens):
        end = min(offset + chunk_tokens, len(tokens))
        weights = rows[:, offset:end].to(dtype)

        def add(name: str, output: Tensor, weights: Tensor = weights) -> None:
            sums[:, layout.slices[name]] += (weights.to(output.device) @ output[0].to(dtype)).cpu()

        device = model.get_input_embeddings().weight.device
        state = Prefill(cache, offset, end, device)
        with _on_outputs(layout, add):
            model.model(
                input_ids=tokens[None, offset:end].to(device),
                position_ids=state.positions[None],
                use_cache=False,
                trace_state=state,
            )
    return sums


def _batch_gradients(model: Any, layout: Layout, tokens: Tensor, batch: Batch, cache: KeyValueCache) -> Tensor:
    """(W, D) gradients of each window's loss, averaged over its positions."""
    dtype = accumulation_dtype(model)
    result = torch.zeros(len(batch.number), layout.size, dtype=dtype)
    # One product sums every window's positions: (W, Q), 1/length where the position is the window's. The
    # window's last position, which is not in the row, has gradient zero.
    owners = F.one_hot(batch.owner, len(batch.number)).T.to(dtype) / batch.lengths[:, None]

    def on_gradient(name: str, gradient: Tensor) -> None:
        result[:, layout.slices[name]] = (owners.to(gradient.device) @ gradient[0].to(dtype)).cpu()

    def watch(name: str, output: Tensor) -> None:
        output.register_hook(lambda gradient: on_gradient(name, gradient))

    embedding = model.get_input_embeddings()
    state = PackedSpans(cache, batch, embedding.weight.device)
    with torch.enable_grad(), _on_outputs(layout, watch):
        # The embeddings' output is where autograd starts: no parameter requires a gradient.
        embedded = embedding(tokens[batch.positions].to(embedding.weight.device))[None].requires_grad_()
        hidden = model.model(
            inputs_embeds=embedded,
            position_ids=state.positions[None],
            use_cache=False,
            trace_state=state,
        ).last_hidden_state
        gradient = _loss_gradient(models.head(model), hidden[0].detach(), tokens[batch.positions + 1], batch, dtype)
        torch.autograd.backward(hidden, gradient[None].to(hidden), inputs=[embedded])
    return result


def _loss_gradient(head: models.Head, hidden: Tensor, targets: Tensor, batch: Batch, dtype: torch.dtype) -> Tensor:
    """(Q, hidden) gradient of the sum of the windows' mean cross-entropies with respect to final hidden states.

    Windows don't touch one another, so the sum's gradient is each window's own. A few positions at a time: logits are
    the largest thing there is.
    """
    weights = (1 / batch.predicted.to(dtype))[batch.owner].to(hidden.device)
    parts = []
    for start in range(0, len(hidden), HEAD_TOKENS):
        where = slice(start, start + HEAD_TOKENS)
        part = hidden[where].requires_grad_()
        losses = F.cross_entropy(head(part).to(dtype), targets[where].to(hidden.device), reduction="none")
        parts.append(torch.autograd.grad((losses * weights[where]).sum(), part)[0])
    return torch.cat(parts)


@contextmanager
def _on_outputs(layout: Layout, call: Any) -> Iterator[None]:
    """Call ``call(name, output)`` for every module's output inside the block."""
    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: call(name, output))
        for name, module in layout.modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
