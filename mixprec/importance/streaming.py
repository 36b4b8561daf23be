"""Attribution of models larger than memory: a decoder block's weights are in memory while the block is at work.

Several traces sweep through the model together, so that the weights are read twice for all of them: once up, where
every block sees the traces' tokens and then their spans, and once down, where it sees the spans again, with gradients.
Kept in between: keys and values of all layers, and the hidden states that enter each block at span positions. Same
operations as in engine.py in another order, so the same numbers; gradients are given away block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mixprec.core.memory import release_memory
from mixprec.importance.attention import KeyValueCache, PackedSpans, Prefill, trace_attention
from mixprec.importance.engine import BATCH_TOKENS, CHUNK_TOKENS, Gradients, Job, loss_gradient
from mixprec.importance.options import SWEEP_GB
from mixprec.importance.outputs import Layout, RowSums, SpanGradients, accumulation_dtype
from mixprec.importance.windows import Batch, pack
from mixprec.models.head import Head
from mixprec.models.load import LoadedModel
from mixprec.models.model import Model
from mixprec.models.weights import norm_of, through
from mixprec.walk.blocks import Blocks, block_inputs
from mixprec.walk.walk import walk


@dataclass(frozen=True)
class StreamedModel(Blocks, LoadedModel):
    """Blocks on disk. ``sweep_bytes``: what the traces of one sweep may keep in memory; one trace always goes."""

    sweep_bytes: int = int(SWEEP_GB * 1e9)


def open_model(model: Model, *, sweep_gb: float = SWEEP_GB) -> StreamedModel:
    """Open a model for ``run_traces``: only embeddings, final norm and head are read.

    Raises UserError as Model.open_blocks does.
    """
    opened = model.open_blocks()
    return StreamedModel(opened.model, model.encoder, opened.source, opened.device, int(sweep_gb * 1e9))


def groups(loaded: StreamedModel, layout: Layout, jobs: Sequence[Job]) -> Iterator[range]:
    """Numbers of the jobs of each sweep: as many as fit into ``loaded.sweep_bytes``, at least one."""
    first, size = 0, 0
    for number, job in enumerate(jobs):
        needed = _bytes(loaded, layout, job)
        if number > first and size + needed > loaded.sweep_bytes:
            yield range(first, number)
            first, size = number, 0
        size += needed
    if jobs:
        yield range(first, len(jobs))


def _bytes(loaded: StreamedModel, layout: Layout, job: Job) -> int:
    """What one trace keeps during a sweep: hidden states, keys and values, span inputs of every block, sums."""
    sizes = loaded.decoder.sizes
    each = next(loaded.model.parameters()).element_size()
    positions = sum(window.compute for window in job.windows)
    cached = len(job.tokens) * loaded.layers * 2 * sizes.key
    states = (len(job.tokens) + positions * (loaded.layers + 1)) * sizes.hidden
    sums = len(job.rows) * layout.size
    return int((cached + states) * each + sums * accumulation_dtype(loaded.model).itemsize)


def run_traces(
    loaded: StreamedModel,
    layout: Layout,
    jobs: Sequence[Job],
    gradients: Sequence[Gradients],
    *,
    chunk_tokens: int = CHUNK_TOKENS,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Tensor]:
    """engine.run_trace for several traces in one sweep up and one down; each block is read twice."""
    with trace_attention(loaded.model), torch.no_grad():
        traces = [
            _Trace(loaded, layout, job, found, chunk_tokens, batch_tokens)
            for job, found in zip(jobs, gradients, strict=True)
        ]

        def up(index: int, block: nn.Module) -> None:
            for trace in traces:
                trace.up(index, block)

        def down(index: int, block: nn.Module) -> None:
            for trace in traces:
                release_memory()
                trace.down(index, block)

        walk(loaded, range(loaded.layers), up)
        for trace in traces:
            trace.turn()
        walk(loaded, reversed(range(loaded.layers)), down)
    return [trace.sums for trace in traces]


@dataclass
class _Piece:
    """Positions that go through the blocks together, a chunk or a packed batch, as ``hidden`` (1, n, hidden).

    ``contexts``: what each block needs besides. ``state`` makes the attention's state: anew for every block, since
    the masks of all pieces together would be too large.
    """

    hidden: Tensor
    contexts: list[dict[str, Any]]
    state: Callable[[], Prefill | PackedSpans]

    def through(self, index: int, block: nn.Module, hidden: Tensor) -> Tensor:
        """The block's output for ``hidden``."""
        return through(block, hidden, {**self.contexts[index], "trace_state": self.state()})


def _piece(model: Any, tokens: Tensor, state: Callable[[], Prefill | PackedSpans]) -> _Piece:
    """The model's input at some positions, whose ids are ``tokens`` (n,)."""
    first = state()
    entering = block_inputs(model, tokens[None], position_ids=first.positions[None], trace_state=first)
    for context in entering.contexts:
        del context["trace_state"]
    return _Piece(entering.hidden, entering.contexts, state)


@dataclass
class _Spans:
    """A packed batch on its way: the hidden states that entered each block, and the gradient on the way down."""

    batch: Batch
    piece: _Piece
    found: SpanGradients
    inputs: list[Tensor] = field(default_factory=list)
    gradient: Tensor | None = None


class _Trace:
    """One trace in a sweep."""

    def __init__(
        self,
        loaded: StreamedModel,
        layout: Layout,
        job: Job,
        gradients: Gradients,
        chunk_tokens: int,
        batch_tokens: int,
    ) -> None:
        model, self._decoder = loaded.model, loaded.decoder
        self._model, self._layout, self._job, self._gradients = model, layout, job, gradients
        self._sums = RowSums(layout, job.rows, accumulation_dtype(model))
        cache, where = KeyValueCache(len(job.tokens)), torch.device(loaded.device)
        self._chunks: dict[int, _Piece] = {}
        for offset in range(0, len(job.tokens), chunk_tokens):
            end = min(offset + chunk_tokens, len(job.tokens))
            with self._sums.watching(layout.within(self._decoder.embedding), offset):
                self._chunks[offset] = _piece(
                    model,
                    job.tokens[offset:end],
                    lambda offset=offset, end=end: Prefill(cache, offset, end, where),  # type: ignore[misc]
                )
        self._spans = [
            _Spans(
                batch,
                _piece(model, job.tokens[batch.positions], lambda batch=batch: PackedSpans(cache, batch, where)),  # type: ignore[misc]
                SpanGradients(layout, batch, accumulation_dtype(model)),
            )
            for batch in pack(job.windows, batch_tokens)
        ]

    def up(self, index: int, block: nn.Module) -> None:
        """All tokens, whose keys and values are cached, then the spans, through a block."""
        for offset, chunk in self._chunks.items():
            with self._sums.watching(self._inside(index), offset):
                chunk.hidden = chunk.through(index, block, chunk.hidden)
        for spans in self._spans:
            spans.inputs.append(spans.piece.hidden)
            spans.piece.hidden = spans.piece.through(index, block, spans.piece.hidden)

    def turn(self) -> None:
        """The spans' losses, and their gradients at the last block's output."""
        decoder = self._decoder
        norm, head = norm_of(self._model), Head.of(self._model)
        watched = self._layout.within(decoder.norm)
        for offset, chunk in self._chunks.items():
            with self._sums.watching(watched, offset):
                norm(chunk.hidden)
        self._chunks.clear()
        if decoder.head in self._layout.modules:
            self._sums.add_logits(head.projection, decoder.norm, decoder.head)
        for spans in self._spans:
            hidden = spans.piece.hidden.requires_grad_()
            with torch.enable_grad(), spans.found.watching(watched):
                normed = norm(hidden)
            gradient = loss_gradient(head, decoder.head, normed.detach(), self._job.tokens, spans.batch, spans.found)
            (spans.gradient,) = torch.autograd.grad(normed, hidden, gradient)
            self._give(spans)

    def down(self, index: int, block: nn.Module) -> None:
        """The spans through a block again, and their gradients from its output to its input."""
        for spans in self._spans:
            hidden = spans.inputs.pop().requires_grad_()
            with torch.enable_grad(), spans.found.watching(self._inside(index)):
                output = spans.piece.through(index, block, hidden)
            (gradient,) = torch.autograd.grad(output, hidden, spans.gradient)
            spans.gradient = gradient
            if not index:
                spans.found.add(self._decoder.embedding, gradient)
            self._give(spans)

    def _inside(self, index: int) -> dict[str, nn.Module]:
        """What is watched of a block."""
        return self._layout.within(f"{self._decoder.blocks[index].path}.")

    def _give(self, spans: _Spans) -> None:
        self._gradients.add(spans.batch.number, spans.found.take())

    @property
    def sums(self) -> Tensor:
        """(R, layout.size) activation sums."""
        return self._sums.sums
