"""AWQ (arXiv 2306.00978): scale input channels before rounding, so that those with large inputs keep more precision.

Scale search (§3.2): linears that share their input x get W s in place of W and x / s in place of x, which changes
nothing until W s is rounded. s comes from one number, the ratio r (eq. 5): s = E|x|^r, or E|x|^r / w^(1 − r) with
w how large a column's weights are beside the largest of their groups, divided by √(max s · min s); the second family
and the division are those of released code. The loss is eq. 4, E‖(Q(W s) / s − W) x‖² = tr(Δ H Δᵀ): second moments H
give exactly what passing all tokens through every candidate would.

Grids that are clipped afterwards (compress.clipping) leave other errors than grids that span their groups, and another
scale is best for them: candidates are rounded to clipped grids too, chosen by the diagonal of H alone, for speed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mixprec.compress.clipping import search_clip
from mixprec.compress.folding import Freedom
from mixprec.compress.rtn import rtn
from mixprec.compress.solving import Scaled, Sharing, Solved, Solver, Task
from mixprec.models.labels import parse_address
from mixprec.numerics.formats import (
    KEEP,
    MIN_BITS,
    AnyFormat,
    CodebookFormat,
    Drop,
    Format,
    GgmlFormat,
    GridFormat,
    Keep,
)
from mixprec.numerics.groupwise import Quantized, Search, dequantize, encode, fit, scale_dtype_of
from mixprec.numerics.statistics import InputStatistics

#: What scales are made of: inputs' magnitudes alone (the paper), or weights' magnitudes too ("duo scaling").
Family = Literal["inputs", "inputs_and_weights"]
#: How candidates' grids are clipped: as a sketch of what compress.clipping will do.
SKETCH = Search(lowest=0.6, step=0.2, refits=0)

#: No scale is smaller before it is normalised, as in released code.
_LEAST = 1e-4
#: Rows of all linears together on which all candidates are compared; the best few are compared on all rows.
_SCREENED_ROWS, _FINALISTS = 256, 4
#: Numbers of a piece of rows that is rounded at once: it and its copies stay in a core's cache.
_PIECE = 2**17


class Scale(NamedTuple):
    """What to multiply the columns of a group's linears with, and to divide their inputs by.

    scale (in,) float32, positive. unnormalised (in,) float32: the same before it was divided by √(max · min) and, where
    asked for, rounded to powers of two: it tells how large a channel's inputs are in absolute terms, and so can be
    compared between linears (arXiv 2504.02010, appendix M); all 1 where nothing is scaled. family and ratio: which
    candidate it is; ratio 0 of "inputs" is no scaling. loss: tr(Δ H Δᵀ) summed over the linears that are quantized, the
    mean over tokens of the squared error of their outputs; loss_before: the same without scaling, never smaller.
    """

    scale: Tensor
    unnormalised: Tensor
    family: Family
    ratio: float
    loss: float
    loss_before: float


class ScaleSummary(NamedTuple):
    """Largest, mean and median unnormalised scale of a group of linears."""

    max: float
    mean: float
    median: float


class _Rounded(NamedTuple):
    """A weight (out, in), the format that it is rounded to, and how its grids are clipped, None where they are not."""

    weight: Tensor
    format: Format
    search: Search | None


class _Candidate(NamedTuple):
    family: Family
    ratio: float
    unnormalised: Tensor
    scale: Tensor


def search_scale(
    weights: Sequence[Tensor],
    formats: Sequence[AnyFormat],
    statistics: InputStatistics,
    *,
    grid: int = 20,
    families: Sequence[Family] = ("inputs", "inputs_and_weights"),
    freedom: Freedom | None = None,
    tie: Tensor | None = None,
    clipped: Sequence[bool] | None = None,
    scale_dtype: torch.dtype | None = None,
    screened_rows: int = _SCREENED_ROWS,
    channels: Tensor | None = None,
) -> Scale:
    """The best of ``grid`` ratios 0, 1/grid, … of each family for linears that share their input, or no scaling.

    ``weights``: (out_i, in) each, finite. ``formats``: one each; linears that are kept don't count in the loss; code
    books are represented by the asymmetric grid of their bits and groups. ``freedom``: which scales are allowed
    (folding.freedom knows); by default all, and powers of two from 1 up where a linear is kept. ``tie`` (in,) long:
    input channels with the same number get the same scale (folding.tie). ``clipped``: whose grids will be clipped, by
    default all; in the search by SKETCH, where columns weigh as the diagonal of H. The grids of others span their
    groups. ``scale_dtype``: of the grids' scales, by default scale_dtype_of the weights. ``screened_rows``: all
    candidates are compared on about so many rows, drawn at random, and the best few and no scaling on all rows.
    ``channels`` (in,): importance of the input channels, whose powers are scales in the place of E|x|'s; weights'
    magnitudes have no part then (QuantLRM, arXiv 2602.02581). The loss stays that of the outputs.

    Raises ValueError where shapes don't fit.
    """
    _check(weights, formats, statistics, tie)
    magnitude = statistics.mean_abs.float()
    if channels is not None:
        magnitude, families = channels.to(magnitude), ("inputs",)
    allowed = freedom or ("powers_up" if KEEP in formats else "free")
    searches = [SKETCH if clip else None for clip in clipped or [True] * len(weights)]
    rounded = [
        _Rounded(weight, _uniform(format), search)
        for weight, format, search in zip(weights, formats, searches, strict=True)
        if not isinstance(format, Keep | Drop)
    ]
    judge = _Judge(statistics.hessian, scale_dtype)
    ones = torch.ones_like(statistics.mean_abs, dtype=torch.float32)
    before = judge.loss(rounded, ones)
    best, least = _Candidate("inputs", 0.0, ones, ones), before
    if allowed == "fixed" or not rounded:
        return Scale(ones, ones, best.family, best.ratio, before, before)
    candidates = _distinct(_candidates(rounded, magnitude, grid, families, allowed, tie), best)
    if sum(len(each.weight) for each in rounded) > screened_rows:
        sample = _sample(rounded, screened_rows)
        candidates = sorted(candidates, key=lambda candidate: judge.loss(sample, candidate.scale))[:_FINALISTS]
    for candidate in candidates:
        loss = judge.loss(rounded, candidate.scale)
        if loss < least:
            best, least = candidate, loss
    return Scale(best.scale, best.unnormalised, best.family, best.ratio, least, before)


def summarise(unnormalised: Tensor) -> ScaleSummary:
    """One number for a group of linears, three ways, from unnormalised scales (in,).

    For the comparison of linears by their scales (arXiv 2504.02010, appendix M), which doesn't say how channels are
    reduced to one number; it leaves out those that are not scaled, whose summary is 1, 1, 1.
    """
    return ScaleSummary(float(unnormalised.max()), float(unnormalised.mean()), float(unnormalised.median()))


def _check(
    weights: Sequence[Tensor], formats: Sequence[AnyFormat], statistics: InputStatistics, tie: Tensor | None
) -> None:
    inputs = statistics.mean_abs.shape
    widths = [tuple(weight.shape) for weight in weights if weight.shape[1:] != inputs]
    if widths or len(weights) != len(formats) or statistics.hessian.shape != 2 * inputs:
        raise ValueError(f"{len(formats)} formats, statistics of {inputs.numel()} inputs, weights {widths} don't fit")
    if tie is not None and tie.shape != inputs:
        raise ValueError(f"a tie of shape {tuple(tie.shape)} for {inputs.numel()} inputs")


def _uniform(format: GridFormat | CodebookFormat | GgmlFormat) -> Format:
    """What stands for ``format`` in the search: learning code books for every candidate would take minutes."""
    if isinstance(format, GgmlFormat):
        return Format(max(MIN_BITS, round(format.bits)), 32, symmetric=False)
    return format if isinstance(format, Format) else Format(format.bits, format.group_size, symmetric=False)


def _candidates(
    rounded: Sequence[_Rounded],
    magnitude: Tensor,
    grid: int,
    families: Sequence[Family],
    freedom: Freedom,
    tie: Tensor | None,
) -> Iterator[_Candidate]:
    inputs = _alive(magnitude if tie is None else _tied(magnitude, tie))
    beside = _beside_largest(rounded)
    own = beside if tie is None else _tied(beside, tie)
    for family in families:
        for step in range(grid):
            ratio = step / grid
            raw = inputs.pow(ratio)
            if family == "inputs_and_weights":
                raw = raw / (own.pow(1 - ratio) + _LEAST)
            raw = raw.clamp(min=_LEAST)
            scale = raw / (raw.max() * raw.min()).sqrt()
            yield _Candidate(family, ratio, raw, scale if freedom == "free" else _powers(scale, freedom))


def _alive(magnitude: Tensor) -> Tensor:
    """Inputs that are never active count as the weakest of the others: as 0 they would set the least scale."""
    if not bool((magnitude > 0).any()):
        return torch.ones_like(magnitude)
    return magnitude.clamp(min=float(magnitude[magnitude > 0].min()))


def _powers(scale: Tensor, freedom: Freedom) -> Tensor:
    """Powers of two near ``scale``, moved together so that the least is 1 (powers_up) or the largest is."""
    exponents = scale.log2().round()
    return torch.exp2(exponents - (exponents.min() if freedom == "powers_up" else exponents.max()))


def _distinct(candidates: Iterator[_Candidate], none: _Candidate) -> list[_Candidate]:
    """Candidates with scales that differ from all before and from none; powers of two often don't."""
    seen: list[_Candidate] = [none]
    for candidate in candidates:
        if not any(torch.equal(candidate.scale, earlier.scale) for earlier in seen):
            seen.append(candidate)
    return seen[1:]


def _beside_largest(rounded: Sequence[_Rounded]) -> Tensor:
    """(in,): mean over rows of |w| / max |w| of its group."""
    total = rounded[0].weight.new_zeros(rounded[0].weight.shape[1], dtype=torch.float32)
    for weight, format, _ in rounded:
        size = format.width(weight.shape[1])
        for group, part in zip(weight.split(size, 1), total.split(size), strict=True):
            sizes = group.float().abs()
            part += sizes.div_(sizes.amax(1, keepdim=True).clamp_(min=1e-12)).sum(0)
    return total / sum(len(each.weight) for each in rounded)


def _tied(values: Tensor, tie: Tensor) -> Tensor:
    """Mean of ``values`` (in,) over the channels that share a number in ``tie`` (in,), at every channel."""
    sums = values.new_zeros(int(tie.max()) + 1).index_add_(0, tie, values)
    return (sums / torch.bincount(tie).clamp(min=1))[tie]


def _sample(rounded: Sequence[_Rounded], count: int) -> list[_Rounded]:
    """About ``count`` rows in all, the same share of each weight. Not evenly spaced: heads repeat."""
    share = count / sum(len(each.weight) for each in rounded)
    generator = torch.Generator().manual_seed(0)

    def drawn(weight: Tensor) -> Tensor:
        rows = torch.randperm(len(weight), generator=generator)[: max(1, round(share * len(weight)))]
        return weight[rows.to(weight.device)]

    return [each._replace(weight=drawn(each.weight)) for each in rounded]


class _Judge:
    """What scales cost. Columns of H are taken in blocks, on and below the diagonal, those below doubled: as H is
    symmetric, half of the products give tr(Δ H Δᵀ)."""

    def __init__(self, hessian: Tensor, scale_dtype: torch.dtype | None) -> None:
        self._scale_dtype = scale_dtype
        self._diagonal = hessian.diagonal()
        width = len(hessian)
        size = max(64, -(-width // 8))
        self._blocks = [(start, hessian[start:, start : start + size].clone()) for start in range(0, width, size)]
        for _, block in self._blocks:
            block[size:] *= 2

    def loss(self, rounded: Sequence[_Rounded], scale: Tensor) -> float:
        """Σ tr(Δ H Δᵀ), Δ = Q(W s) / s − W; summed in float64; infinite where 16-bit scales overflow."""
        total = 0.0
        for each in rounded:
            for piece in each.weight.split(max(16, _PIECE // each.weight.shape[1])):
                delta = self._error(each._replace(weight=piece), scale)
                for start, block in self._blocks:
                    product = delta[:, start:] @ block.to(delta.dtype)
                    product *= delta[:, start : start + block.shape[1]]
                    total += float(product.sum(dtype=torch.float64))
        return float("inf") if math.isnan(total) else total

    def _error(self, rounded: _Rounded, scale: Tensor) -> Tensor:
        weight, format, search = rounded
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        scaled = wide * scale
        costs = self._diagonal / scale.square()
        dtype = self._scale_dtype or scale_dtype_of(weight.dtype)
        grid = fit(scaled, format, dtype, search=search, column_weights=costs)
        quantized = Quantized(encode(scaled, grid, format), grid)
        return dequantize(quantized, format, wide.dtype).div_(scale).sub_(wide)


def _solve(task: Task) -> Solved:
    weight, format = task.weight, task.grid
    (address,) = task.addresses  # nothing is stacked
    if not task.options.clips(parse_address(address)[1]):
        return task.rounded(rtn(weight, format), format)
    grid = search_clip(weight, task.inputs.statistics.hessian, format)
    return task.rounded(Quantized(encode(weight, grid, format), grid), format)


def _scale(sharing: Sharing) -> Scaled:
    found = search_scale(
        sharing.weights,
        sharing.formats,
        sharing.statistics,
        freedom=sharing.freedom,
        tie=sharing.tie,
        scale_dtype=sharing.scale_dtype,
        clipped=[sharing.options.clips(kind) for kind in sharing.kinds],
        channels=sharing.channels,
    )
    magnitude = sharing.statistics.mean_abs if sharing.channels is None else sharing.channels
    return Scaled(found.scale, summarise(magnitude.pow(found.ratio)).mean)


SOLVER = Solver(_solve, _scale)
