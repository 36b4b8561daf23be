"""Importance of input channels from what fine-tuning changed: QuantLRM (arXiv 2602.02581), protecting both ends.

The smallest and the largest updates count most: |ΔW| > 0 is mapped to 1 + (R − 1) z², where z goes from −1 at the
least of all modules over 0 at their median to 1 at the most. A channel's importance is the mean of this over its
weights, times one more than the number of weights that did not change, which themselves count as 1 in the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

#: R of both ends, as in released code.
ENDS = 10.0
#: Positive floats are ordered as their bits are: the upper and the lower half of these.
_HALF = 16


class Extent(NamedTuple):
    """Least, median and most of all updates that are not zero, and how many of them and of zeros there are."""

    least: float
    middle: float
    most: float
    changed: int
    zeros: int


class ChannelSums(NamedTuple):
    """Of a module's input channels (in,): ``mapped``, sum over its weights, float64; ``zeros``, int64: how many did not
    change. ``rows``: weights of a channel."""

    mapped: Tensor
    zeros: Tensor
    rows: int


def extent(updates: Callable[[], Iterable[Tensor]]) -> Extent:
    """The extent of all ``updates``, |ΔW| in float32, which are gone through twice; the median is exact.

    Of an even number of updates the median is the mean of the two in the middle. Raises ValueError where all are zero.
    """
    upper = torch.zeros(1 << _HALF, dtype=torch.int64)
    least, most, zeros = float("inf"), 0.0, 0
    for update in updates():
        found = update[update > 0]
        zeros += update.numel() - found.numel()
        if found.numel():
            least, most = min(least, float(found.min())), max(most, float(found.max()))
            upper += torch.bincount(_bits(found) >> _HALF, minlength=1 << _HALF)
    count = int(upper.sum())
    if not count:
        raise ValueError("all updates are zero")
    below = upper.cumsum(0)
    ranks = ((count - 1) // 2, count // 2)
    bins = [int(torch.searchsorted(below, rank, right=True)) for rank in ranks]
    lower = {each: torch.zeros(1 << _HALF, dtype=torch.int64) for each in bins}
    for update in updates():
        bits = _bits(update[update > 0])
        for each, counts in lower.items():
            counts += torch.bincount(bits[bits >> _HALF == each] & ((1 << _HALF) - 1), minlength=1 << _HALF)
    middle = [
        _value(each, lower[each], rank - int(below[each] - upper[each])) for rank, each in zip(ranks, bins, strict=True)
    ]
    return Extent(least, sum(middle) / 2, most, count, zeros)


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.int32).flatten().to(torch.int64)


def _value(upper: int, lower: Tensor, rank: int) -> float:
    """The value with ``rank``, from 0, among those with the same upper half of bits."""
    low = int(torch.searchsorted(lower.cumsum(0), rank, right=True))
    return float(torch.tensor([upper << _HALF | low], dtype=torch.int32).view(torch.float32))


def both_ends(update: Tensor, of: Extent, ends: float = ENDS) -> Tensor:
    """Updates |ΔW|, of any shape, mapped to 1 to ``ends``, float64; those that are zero to 1."""
    wide = update.double()
    left, right = max(of.middle - of.least, 1e-30), max(of.most - of.middle, 1e-30)
    place = torch.where(wide <= of.middle, (of.middle - wide) / left, (wide - of.middle) / right).clamp(-1, 1)
    return torch.where(wide == 0, 1.0, 1 + (ends - 1) * place.square())


def channel_sums(update: Tensor, of: Extent, ends: float = ENDS) -> ChannelSums:
    """The sums of a module's updates |ΔW| (out, in)."""
    return ChannelSums(both_ends(update, of, ends).sum(0), (update == 0).sum(0), len(update))


def importance(parts: Iterable[ChannelSums]) -> Tensor:
    """Importance (in,), float64, of the input channels that modules share, as if their rows were one module's."""
    every = list(parts)
    rows = sum(each.rows for each in every)
    mapped, zeros = (torch.stack(list(column)).sum(0) for column in list(zip(*every, strict=True))[:2])
    return mapped / rows * (zeros + 1)
