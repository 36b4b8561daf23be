"""What a model is evaluated on: passages of tokens, with the behaviours' spans where they come from traces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.models.encoding import Encoder, windows
from mixprec.traces import store
from mixprec.traces.spans import AnnotatedTrace, TokenSpan, token_spans


class Passage(NamedTuple):
    """Tokens (T,) that go through the model at once, and the spans among them.

    ``offsets``: of a trace's tokens, the characters [start, end) of its text that each stands for.
    """

    tokens: Tensor
    spans: tuple[TokenSpan, ...] = ()
    offsets: Sequence[tuple[int, int]] = ()


class Material(NamedTuple):
    """What models are compared on; ``skipped``: spans of the traces that are not counted, by reason."""

    on_traces: list[Passage]
    on_text: list[Passage]
    skipped: Counter[str]

    @property
    def all(self) -> list[Passage]:
        """The traces first."""
        return [*self.on_traces, *self.on_text]


def gather(
    traces: Sequence[AnnotatedTrace],
    text: str | None,
    encoder: Encoder,
    context: int,
    *,
    max_tokens: int | None = None,
    text_tokens: int = 512,
    text_passages: int | None = None,
) -> Material:
    """Passages of traces, cut at ``max_tokens`` or the model's ``context``, and of a text as ``from_text`` cuts it.

    Raises UserError as ``from_traces`` and ``from_text`` do.
    """
    limit = min(max_tokens or context, context)
    on_traces, skipped = from_traces(traces, encoder, limit)
    on_text = from_text(text, encoder, min(text_tokens, limit), text_passages) if text else []
    return Material(on_traces, on_text, skipped)


def from_traces(traces: Sequence[AnnotatedTrace], encoder: Encoder, limit: int) -> tuple[list[Passage], Counter[str]]:
    """One passage per trace, cut at ``limit`` tokens; also what was skipped, by reason.

    Raises UserError for a trace of fewer than two tokens: it predicts nothing.
    """
    passages, skipped = [], Counter[str]()
    for trace in traces:
        ids, offsets = encoder(trace.trace.text)
        if len(ids) < 2:
            raise UserError(f"trace {trace.trace.id}: {len(ids)} tokens; a trace needs at least two")
        spans, missed = token_spans(trace.spans, offsets, limit)
        skipped.update(trace.skipped)
        skipped.update(missed)
        skipped["cut_traces"] += int(len(ids) > limit)
        passages.append(Passage(torch.tensor(ids[:limit]), tuple(spans), offsets[:limit]))
    return passages, +skipped


def from_text(source: str, encoder: Encoder, length: int, most: int | None = None) -> list[Passage]:
    """A text file in passages of ``length`` tokens, at most ``most`` of them; ``bundled:held_out`` is ours.

    Each has BOS in front where the model has one: ``length`` counts it. A last passage of one token predicts nothing
    and is left out. Raises UserError for missing and empty files, and a length that BOS fills.
    """
    path = store.held_out_text() if source == store.HELD_OUT else Path(source).expanduser()
    text = artifacts.read_text(path)
    head = encoder.head
    if length <= len(head):
        raise UserError(f"passages of {length} tokens leave no room behind the {len(head)} that every text begins with")
    ids = encoder.own(text).ids
    found = [Passage(torch.tensor([*each.front, *ids[each.start : each.end]])) for each in windows(ids, length, head)]
    found = [passage for passage in found if len(passage.tokens) > 1]
    # Some tokenizers make special tokens of no text at all.
    if not text.strip() or not found:
        raise UserError(f"{path}: the text is empty or of one token; nothing to evaluate on")
    return found[:most]


def total_tokens(passages: Iterable[Passage]) -> int:
    """Number of tokens in all passages."""
    return sum(len(passage.tokens) for passage in passages)
