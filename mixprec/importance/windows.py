"""From token spans to the positions that the mathematics needs: activation rows, gradient windows, packed batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mixprec.importance.options import AttributionOptions


class Span(Protocol):
    """Half-open token range [start, end) of one behaviour."""

    @property
    def behaviour(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...


class Window(NamedTuple):
    """Tokens [start, end) whose cross-entropy is attributed, to behaviour number ``behaviour``."""

    behaviour: int
    start: int
    end: int

    @property
    def compute(self) -> int:
        """Positions that must be computed: the last token predicts nothing inside the window."""
        return self.end - self.start - 1


class Work(NamedTuple):
    """What one trace needs under one set of options.

    rows: (behaviours, tokens), how often a position counts in a behaviour's activation mean.
    windows: one for each span that has a gradient. skipped: spans left out, by reason.
    """

    rows: Tensor
    windows: list[Window]
    skipped: Counter[str]


def plan_work(spans: Sequence[Span], behaviours: Sequence[str], tokens: int, options: AttributionOptions) -> Work:
    """Positions for the spans of one trace of ``tokens`` tokens; spans of other behaviours are passed over.

    A position in two spans of a behaviour counts twice in its mean, as in the released code.
    """
    rows = torch.zeros(len(behaviours), tokens)
    windows: list[Window] = []
    skipped: Counter[str] = Counter()
    for span in spans:
        if span.behaviour not in behaviours:
            continue
        behaviour = behaviours.index(span.behaviour)
        end = span.end - int(options.drop_last)
        if end <= span.start:
            # The released code divides by zero here and turns every score into NaN.
            skipped["one_token"] += 1
            continue
        positions = torch.arange(span.start - options.preceding, end)
        positions = positions % tokens if options.wrap_negative else positions[positions >= 0]
        rows[behaviour].index_add_(0, positions, torch.ones(len(positions)))
        preceding = options.preceding if options.preceding_in_gradient else 0
        windows.append(Window(behaviour, max(0, span.start - preceding), end))
    return Work(rows, windows, skipped)


class Batch(NamedTuple):
    """Windows packed into one row of positions; Q = their number, W = number of windows.

    number: (W,) which windows, numbers into the list that was packed. positions: (Q,) position in the trace.
    owner: (Q,) which of the batch's windows a position belongs to. starts: (W,) first token of each.
    predicted: (W,) tokens of the window that its loss is the mean of. lengths: (W,) tokens of the window.
    """

    number: Tensor
    positions: Tensor
    owner: Tensor
    starts: Tensor
    predicted: Tensor
    lengths: Tensor


def pack(windows: Sequence[Window], batch_tokens: int) -> Iterator[Batch]:
    """Pack windows, in order of their start so that their prefixes are alike, into rows of about ``batch_tokens``.

    A window longer than that gets a row of its own. Windows of one token have no gradient and are left out.
    """
    order = sorted(range(len(windows)), key=lambda i: (windows[i].start, windows[i].end))
    waiting: list[int] = []
    size = 0
    for i in order:
        if windows[i].compute < 1:
            continue
        if waiting and size + windows[i].compute > batch_tokens:
            yield _batch(windows, waiting)
            waiting, size = [], 0
        waiting.append(i)
        size += windows[i].compute
    if waiting:
        yield _batch(windows, waiting)


def _batch(windows: Sequence[Window], index: list[int]) -> Batch:
    chosen = [windows[i] for i in index]
    sizes = torch.tensor([window.compute for window in chosen])
    starts = torch.tensor([window.start for window in chosen])
    ends = torch.tensor([window.end for window in chosen])
    return Batch(
        number=torch.tensor(index),
        positions=torch.cat([torch.arange(window.start, window.end - 1) for window in chosen]),
        owner=torch.repeat_interleave(torch.arange(len(chosen)), sizes),
        starts=starts,
        # The trace's very first token is predicted by nothing.
        predicted=ends - starts.clamp(min=1),
        lengths=ends - starts,
    )
