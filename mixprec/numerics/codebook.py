"""Code books: weights as indices into a few learned values, and the k-means that learns them, all rows at once.

In one dimension k-means is nearly free. Sorted values and running sums of their moments give the error of any
cluster as a difference, so that one iteration costs two look-ups per boundary instead of a distance per value and
centre. Lloyd's iterations alone end in poor optima (10 to 20% above the least error at 16 centres, from the best of
three starts, on a language model's rows), so they start from the optimum over coarse bins, found by dynamic
programming: what is left is about 0.5%. Nothing is random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mixprec.numerics import packing
from mixprec.numerics.formats import CodebookFormat
from mixprec.numerics.groupwise import per_column
from mixprec.numerics.kernels import operation

#: Bins per centre that the dynamic programming starts from; 6 would leave 0.2% instead of 0.5%, at twice the time.
_BINS_PER_CENTRE = 4
#: Lloyd's iterations after it; more change nothing that can be measured.
_ITERATIONS = 10
#: Edges whose costs are computed at once.
_BLOCK = 16
_TINY = 1e-300


class CodebookQuantized(NamedTuple):
    """Weights (out, in) as ``scales · codebook[row, codes] + offsets``.

    codes (out, in) uint8; codebook (out, 2^bits), ascending; scales and offsets (out, groups); the latter three in
    one 16-bit type. A group whose scale is 0 holds its offset only.
    """

    codes: Tensor
    codebook: Tensor
    scales: Tensor
    offsets: Tensor


class Clusters(NamedTuple):
    """``centres`` (rows, clusters), ascending; ``error`` (rows,) float64: Σ weight · (value − nearest centre)²."""

    centres: Tensor
    error: Tensor


class SortedValues(NamedTuple):
    """``values`` (rows, n), ascending; ``sums`` (3, rows, n + 1) float64: Σc, Σcx, Σcx² over the values before each."""

    values: Tensor
    sums: Tensor


@operation
def dequantize_codebook(quantized: CodebookQuantized, format: CodebookFormat, dtype: torch.dtype) -> Tensor:
    """The weights (out, in) that the codes stand for, computed in float32 or wider, rounded once to ``dtype``."""
    codes, codebook, scales, offsets = quantized
    wide = torch.promote_types(dtype, torch.float32)
    values = codebook.to(wide).gather(1, codes.long())
    values *= per_column(scales.to(wide), codes.shape[1], format)
    values += per_column(offsets.to(wide), codes.shape[1], format)
    return values.to(dtype)


def to_tensors(quantized: CodebookQuantized, format: CodebookFormat) -> dict[str, Tensor]:
    """Codes packed, all else as it is."""
    return quantized._asdict() | {"codes": packing.pack(quantized.codes, format.bits)}


def from_tensors(tensors: Mapping[str, Tensor], format: CodebookFormat, shape: tuple[int, int]) -> CodebookQuantized:
    """The inverse of ``to_tensors``, for a weight of this shape."""
    return CodebookQuantized(**{**tensors, "codes": packing.unpack(tensors["codes"], format.bits, shape[1])})


def encode_codebook(values: Tensor, codebook: Tensor) -> Tensor:
    """Codes (rows, n) uint8 of the entries of ``codebook`` (rows, entries), ascending, nearest to ``values``."""
    return torch.searchsorted(_boundaries(codebook.to(values.dtype)), values).to(torch.uint8)


def normal_float(bits: int) -> Tensor:
    """NormalFloat's 2^bits levels from −1 to 1, float64 (QLoRA, arXiv 2305.14314, §3 and appendix E).

    Quantiles of the normal distribution: as many steps below zero as there are negative levels, as many above as
    there are positive ones (one more), zero itself shared; the largest scaled to 1.
    """
    count = 2**bits
    outermost = 1 - (1 / (2 * count) + 1 / (2 * (count - 1))) / 2
    positive, negative = (
        torch.special.ndtri(torch.linspace(0.5, outermost, steps + 1, dtype=torch.float64))[1:]
        for steps in (count // 2, count // 2 - 1)
    )
    levels: Tensor = torch.cat([-negative.flip(0), positive.new_zeros(1), positive]) / positive[-1]
    return levels


def kmeans(
    values: Tensor, weights: Tensor, clusters: int, dtype: torch.dtype, grids: Sequence[Tensor] = ()
) -> Clusters:
    """Nearly the best ``clusters`` centres for each row of ``values`` (rows, n), float32 or wider, in ``dtype``.

    weights (rows, n) ≥ 0; values of weight 0 don't matter. grids: ascending centres (clusters,) that the result is
    never worse than, in any row. Where a row has no more different values than clusters, they are the centres.
    Errors are those of the rounded centres.
    """
    largest = weights.amax(1, keepdim=True)
    unit = torch.where(largest > 0, largest, torch.ones_like(largest))  # so that float32 holds the errors of any row
    data = sort_values(values, weights / unit)
    candidates = [lloyd(data, best_binned(data, clusters), _ITERATIONS), _different(data.values, clusters)]
    candidates += [grid.to(values.device).expand(len(values), -1) for grid in grids]
    rounded = torch.stack([candidate.to(dtype) for candidate in candidates])
    errors = torch.stack([error(data, candidate) for candidate in rounded])
    least, which = errors.min(0)
    centres = rounded[which, torch.arange(len(which), device=which.device)]
    return Clusters(centres, least * unit[:, 0])


def sort_values(values: Tensor, weights: Tensor) -> SortedValues:
    """Sort each row of ``values`` (rows, n) and sum up the moments under ``weights`` (rows, n)."""
    ordered, index = values.sort(1)
    weight, value = weights.gather(1, index).double(), ordered.double()
    sums = value.new_zeros(3, *value.shape[:1], value.shape[1] + 1)
    for moment in sums:
        torch.cumsum(weight, 1, out=moment[:, 1:])
        weight = weight * value
    return SortedValues(ordered, sums)


def error(data: SortedValues, centres: Tensor) -> Tensor:
    """Σ weight · (value − nearest centre)² of each row (rows,), float64; ``centres`` (rows, clusters) ascending."""
    wide = centres.double()
    mass, first, second = _cluster_sums(data, wide)
    squares: Tensor = second - 2 * wide * first + wide.square() * mass
    return squares.sum(1).clamp_(min=0)


def lloyd(data: SortedValues, centres: Tensor, iterations: int) -> Tensor:
    """``centres`` (rows, clusters), ascending, float64, after Lloyd's iterations; an empty cluster keeps its centre."""
    low, high = data.values[:, :1].double(), data.values[:, -1:].double()
    for _ in range(iterations):
        mass, first, _ = _cluster_sums(data, centres)
        # A cluster whose weight is lost in the rounding of the sums could have its mean anywhere.
        means = torch.where(mass > 0, first / mass.clamp(min=_TINY), centres).clamp(low, high)
        centres = means.sort(1).values
    return centres


def best_binned(data: SortedValues, clusters: int) -> Tensor:
    """Centres (rows, clusters), float64, of the best clusters whose boundaries are edges of a few bins.

    Dynamic programming over the bins (Wang and Song, Ckmeans.1d.dp, The R Journal 3/2, 2011); exact where a row has
    no more values than bins.
    """
    edges = _edges(data, _BINS_PER_CENTRE * clusters)
    sums = data.sums.gather(2, edges.expand(3, -1, -1))
    cuts = _best_cuts(sums, clusters)
    mass, first, _ = sums.gather(2, cuts.expand(3, -1, -1)).diff(dim=2)
    starts = edges.gather(1, cuts[:, :-1]).clamp(max=data.values.shape[1] - 1)
    centres = torch.where(mass > 0, first / mass.clamp(min=_TINY), data.values.gather(1, starts).double())
    return centres.sort(1).values


def _boundaries(centres: Tensor) -> Tensor:
    return ((centres[:, 1:] + centres[:, :-1]) / 2).contiguous()


def _cluster_sums(data: SortedValues, centres: Tensor) -> Tensor:
    """(3, rows, clusters): Σc, Σcx, Σcx² of the values nearest to each centre."""
    inner = torch.searchsorted(data.values, _boundaries(centres).to(data.values.dtype), right=True)
    first = torch.zeros_like(inner[:, :1])
    ends = torch.cat([first, inner, first + data.values.shape[1]], 1)
    return data.sums.gather(2, ends.expand(3, -1, -1)).diff(dim=2)


def _different(ordered: Tensor, clusters: int) -> Tensor:
    """(rows, clusters): the first different values of each row, then its last one."""
    rank = torch.zeros_like(ordered, dtype=torch.long)
    rank[:, 1:] = (ordered.diff(dim=1) > 0).cumsum(1)
    found = ordered[:, -1:].repeat(1, clusters)
    return found.scatter_reduce_(1, rank.clamp_(max=clusters - 1), ordered, "amin")


def _edges(data: SortedValues, bins: int) -> Tensor:
    """(rows, bins + 1) indices of sorted values that bins begin at, the last one behind them all.

    The best quantizer of many levels has them as dense as the cube root of the values' density (Panter and Dite
    1951), and so have the bins: they serve a row with outliers as well as one without. Density is weight by gap.
    """
    rows, n = data.values.shape
    if n <= bins:
        return torch.arange(n + 1, device=data.values.device).expand(rows, -1)
    weight = data.sums[0].diff(dim=1)
    between = (weight[:, 1:] + weight[:, :-1]) / 2
    gaps = data.values.double().diff(dim=1)
    levels = (between * gaps.square()).pow_(1 / 3).cumsum(1)  # density^(1/3) · gap = weight^(1/3) · gap^(2/3)
    targets = levels[:, -1:] * (torch.arange(1, bins, device=levels.device) / bins)
    inner = torch.searchsorted(levels, targets) + 1
    first = torch.zeros_like(inner[:, :1])
    return torch.cat([first, inner.clamp_(max=n), first + n], 1)


def _best_cuts(sums: Tensor, clusters: int) -> Tensor:
    """(rows, clusters + 1) edges that cut each row into clusters of least error, from ``sums`` (3, rows, edges).

    Clusters may be empty. Errors are differences of float64 sums, rounded to float32 to be compared.
    """
    at = sums.transpose(1, 2).contiguous()  # rows last, so that every step runs over all of them side by side
    edges = at.shape[1]
    costs = [_costs(at, start, min(start + _BLOCK, edges)) for start in range(0, edges, _BLOCK)]
    # best[k][j]: the least error of what lies before edge j in k + 1 clusters.
    best = [torch.cat([block[0] for block in costs])]
    for _ in range(clusters - 2):
        best.append(torch.cat([(best[-1][: len(block), None] + block).amin(0) for block in costs]))
    index = torch.arange(edges, device=at.device)[:, None]
    cut = torch.full_like(at[0, 0], edges - 1, dtype=torch.long)
    cuts = [cut]
    for errors in reversed(best):
        last = _spread(at.gather(1, cut.expand(3, 1, -1)) - at)
        cut = torch.where(index <= cut, errors + last, torch.inf).argmin(0)
        cuts.append(cut)
    cuts.append(torch.zeros_like(cut))
    return torch.stack(cuts[::-1], 1)


def _costs(at: Tensor, start: int, end: int) -> Tensor:
    """(end, end − start, rows): the error of one cluster from edge i to edge j in start … end, infinite for i > j."""
    costs = _spread(at[:, None, start:end] - at[:, :end, None])
    ahead = torch.full((end - start, end - start), torch.inf, device=at.device).tril(-1)
    costs[start:] += ahead[:, :, None]
    return costs


def _spread(sums: Tensor) -> Tensor:
    """float32 Σc(x − mean)² from ``sums`` (3, …), float64, of Σc, Σcx, Σcx²; 0 where Σc is."""
    mass, first, second = sums
    spread: Tensor = second - first.square() / mass.clamp(min=_TINY)
    return spread.clamp_(min=0).float()
