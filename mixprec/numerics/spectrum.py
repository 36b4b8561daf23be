"""How heavy the tail of a weight's spectrum is: the power law's exponent by the Hill estimator.

AlphaPruning (arXiv 2410.10912, §3.1) takes a small exponent, a heavy tail, as the sign of a well-trained layer.
λ_1 <= … <= λ_n are the eigenvalues of WᵀW that are not zero: n = min(out, in), less for a matrix of lower rank.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

#: Where the tail begins; see ``hill_alpha``.
Tail = Literal["peak", "released", "median"]
#: Bins of the histogram of log10 λ, and the search around its peak, as in the released code.
_BINS, _BELOW, _ABOVE = 100, 0.95, 1.5


def eigenvalues(weight: Tensor) -> Tensor:
    """The eigenvalues of WᵀW, rising, float64, without those that are zero up to rounding; W is (out, in), finite."""
    wide = weight.to(torch.float64)
    gram = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
    found: Tensor = torch.linalg.eigvalsh(gram)
    positive: Tensor = found[found > found[-1] * max(weight.shape) * torch.finfo(torch.float64).eps]
    return positive


def hill_alpha(weight: Tensor, tail: Tail | int = "peak") -> float:
    """The exponent of the power law that the largest eigenvalues of WᵀW follow; W is (out, in), finite.

    ``tail`` as a number k: the paper's formula, 1 + k / Σ_{i=1…k} ln(λ_{n−i+1} / λ_{n−k}), 1 <= k < n.

    Otherwise the tail is the eigenvalues from λ_i on, and alpha = 1 + (n − i + 1) / Σ_{j>=i} ln(λ_j / λ_i) as in the
    released code: it counts λ_i itself too, which adds a term 0 to the sum and 1 to the number. i is

    - ``median``: the upper half's beginning, i = ⌊n/2⌋ + 1 (there ``alpha_mid``);
    - ``peak``: "Fix-finger" (there ``alpha_peak``, its default): of all λ_i in [0.95 p, 1.5 p] the one whose power law
      fits best (least Kolmogorov–Smirnov distance; the first of equal ones), where p is the left end of the fullest of
      100 equal bins of log10 λ. Where none lies in that range, the lowest above p;
    - ``released``: the same, but the range begins at log10(0.95 p): there the code compares eigenvalues with a
      logarithm. It is mostly below all of them, which leaves the search open downwards.

    Raises ValueError for a weight with fewer than two eigenvalues above zero or with no two that differ, and for a k
    out of range.
    """
    values = eigenvalues(weight)
    if len(values) < 2 or values[0] == values[-1]:
        raise ValueError(
            f"the weight {tuple(weight.shape)} has no spectrum to fit: fewer than two different eigenvalues"
        )
    logs = values.log()
    if isinstance(tail, int):
        if not 1 <= tail < len(values):
            raise ValueError(
                f"k must be 1 to {len(values) - 1}, the eigenvalues that are not zero less one, it is {tail}"
            )
        return 1 + tail / float((logs[-tail:] - logs[-tail - 1]).sum())
    if tail == "median":
        return _alpha(logs, len(values) // 2)
    candidates = _around_peak(values, tail)
    return min((_distance(logs, start), start, _alpha(logs, start)) for start in candidates)[2]


def _alpha(logs: Tensor, start: int) -> float:
    """1 + number / Σ ln(λ_j / λ_start) of the eigenvalues from ``start`` (from 0) on; infinite if all are equal."""
    total = float((logs[start:] - logs[start]).sum())
    return 1 + (len(logs) - start) / total if total > 0 else math.inf


def _distance(logs: Tensor, start: int) -> float:
    """Kolmogorov–Smirnov distance of the eigenvalues from ``start`` on to the power law that is fitted to them."""
    alpha = _alpha(logs, start)
    if math.isinf(alpha):
        return 1.0
    count = len(logs) - start
    expected = 1 - ((1 - alpha) * (logs[start:] - logs[start])).exp()
    return float((expected - torch.arange(count, dtype=logs.dtype, device=logs.device) / count).abs().max())


def _around_peak(values: Tensor, tail: Tail) -> list[int]:
    """Indices (from 0) of the eigenvalues that may begin the tail; the largest is never among them."""
    logs = values.log10()
    low, high = float(logs[0]), float(logs[-1])
    counts = torch.histc(logs, _BINS, min=low, max=high)
    peak = 10 ** (low + int(counts.argmax()) * (high - low) / _BINS)
    lowest = math.log10(_BELOW * peak) if tail == "released" else _BELOW * peak
    inside = (values[:-1] >= lowest) & (values[:-1] <= _ABOVE * peak)
    if not bool(inside.any()):
        return [min(int((values < peak).sum()), len(values) - 2)]
    return [int(index) for index in inside.nonzero()[:, 0]]
