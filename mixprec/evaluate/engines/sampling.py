"""Drawing tokens: every row has random numbers of its own, so that a batch's rows don't depend on one another."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

#: Tokens sorted first; a row whose likeliest so many don't reach top_p is sorted whole.
_CANDIDATES = 512


def draw(logits: Tensor, sources: Sequence[random.Random], temperature: float, top_p: float) -> Tensor:
    """Next tokens (B,) of logits (B, V): one uniform number from each row's source, put through its distribution.

    The distribution is the softmax at ``temperature`` over the fewest likeliest tokens whose probabilities reach
    ``top_p``. Probabilities are summed in float64 where the device has it. Greedy at ``temperature`` 0, which draws
    no number.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits.float() / temperature).softmax(-1)
    numbers = torch.tensor([source.random() for source in sources], device=logits.device, dtype=torch.float32)
    top = probabilities.topk(min(_CANDIDATES, probabilities.shape[-1]), dim=-1)
    chosen = _inverse(top.values, top.indices, numbers, top_p)
    whole = top.values.shape[-1] == probabilities.shape[-1]
    for row in [] if whole else (top.values.sum(-1) < top_p).nonzero()[:, 0].tolist():
        ordered = probabilities[row].sort(descending=True, stable=True)
        chosen[row] = _inverse(ordered.values[None], ordered.indices[None], numbers[row : row + 1], top_p)[0]
    return chosen


def _inverse(values: Tensor, tokens: Tensor, numbers: Tensor, top_p: float) -> Tensor:
    """Tokens (B,) where the distribution of ``values`` (B, K), best first, cut at ``top_p``, passes ``numbers``."""
    summing = torch.float32 if values.device.type == "mps" else torch.float64
    values = values.to(summing)
    cumulative = values.cumsum(-1)
    # A token stays as long as those before it have not reached top_p: the first always does.
    kept = values * ((cumulative - values) < top_p)
    cumulative = kept.cumsum(-1)
    where = torch.searchsorted(cumulative, numbers.to(summing)[:, None] * cumulative[:, -1:], right=True)
    last = (kept > 0).sum(-1, keepdim=True) - 1  # a number that rounding puts past the end
    return tokens.gather(-1, torch.minimum(where, last))[:, 0]
