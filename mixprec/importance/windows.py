"""From token spans to the positions that the mathematics needs: activation rows, gradient windows, packed batches."""

from __future__ import annotations

import math
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
    """Pieces of windows packed into one row of positions; Q = their number, W = number of windows they belong to.

    number: (W,) which windows, numbers into the list that was packed. positions: (Q,) position in the trace.
    owner: (Q,) which of the batch's windows a position belongs to. starts: (W,) first token of each.
    predicted: (W,) tokens of the window that its loss is the mean of. lengths: (W,) tokens of the window.
    Only the first window can have positions in a batch that comes later, only the last one in an earlier batch.
    """

    number: Tensor
    positions: Tensor
    owner: Tensor
    starts: Tensor
    predicted: Tensor
    lengths: Tensor

    @property
    def earlier(self) -> slice:
        """Positions of the first window that lie before this batch."""
        return slice(int(self.starts[0]), int(self.positions[0]))


def pack(windows: Sequence[Window], batch_tokens: int) -> Iterator[Batch]:
    """Pack windows into rows of equal size, at most ``batch_tokens`` positions.

    Windows follow one another in order of their start, so that their prefixes are alike, and are cut where a row is
    full. The last row comes first: of a window that is cut, the gradients at its earlier keys and values are known
    before its earlier positions are computed. Windows of one token have no gradient and are left out.
    """
    order = [i for i in range(len(windows)) if windows[i].compute >= 1]
    if not order:
        return
    order.sort(key=lambda i: (windows[i].start, windows[i].end))
    numbers = torch.cat([torch.full((windows[i].compute,), i) for i in order])
    positions = torch.cat([torch.arange(windows[i].start, windows[i].end - 1) for i in order])
    rows = math.ceil(len(positions) / batch_tokens)
    size = math.ceil(len(positions) / rows)
    for row in reversed(list(zip(numbers.split(size), positions.split(size), strict=True))):
        yield _batch(windows, *row)


def alone(windows: Sequence[Window], number: int) -> Batch:
    """A window by itself, whole."""
    window = windows[number]
    positions = torch.arange(window.start, window.end - 1)
    return _batch(windows, torch.full((len(positions),), number), positions)


def _batch(windows: Sequence[Window], numbers: Tensor, positions: Tensor) -> Batch:
    number, owner = numbers.unique_consecutive(return_inverse=True)
    starts = torch.tensor([windows[i].start for i in number.tolist()])
    ends = torch.tensor([windows[i].end for i in number.tolist()])
    # The trace's very first token is predicted by nothing.
    return Batch(number, positions, owner, starts, predicted=ends - starts.clamp(min=1), lengths=ends - starts)
