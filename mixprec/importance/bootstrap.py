"""How far importance and its ranking would move with other traces of the same kind: bootstrap over traces.

A resample draws as many traces as there are, with replacement, and everything is computed again from it, the steering
vectors too. No vector as long as a module's output is needed for that. How often each trace was drawn is a vector of
weights w, means are linear in w, and so (per module; N traces) the norm of a mean is a quadratic form in w with the
N x N inner products of the traces' means, and a gradient's product with a steering vector is linear in w with the
inner products of that gradient and the traces' means. All resamples together are a few matrix products. Exact,
absolute values inside the sum over spans included (tests/importance/test_bootstrap.py compares with scores.score).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from mixprec.importance import artifact, statistics
from mixprec.importance.options import AttributionOptions

SEED = 0
LEVEL = 0.95

#: Bytes that the statistics of neighbouring modules may take together; one module is the least.
_BLOCK_BYTES = 128_000_000
#: Gradient rows that are multiplied at once.
_ROWS = 512
#: A squared norm this small beside its terms is rounding of the float32 statistics: the vector counts as zero.
_ROUNDING = 1e-13


class _Draws(NamedTuple):
    """B resamples of N traces with C behaviours.

    weights (N, B): how often each trace was drawn; drawn (B,): its sum. tokens (N,). present (C, B): traces drawn
    that have the behaviour; divisor (C, B): what the sum over spans is divided by.
    """

    weights: Tensor
    drawn: Tensor
    tokens: Tensor
    present: Tensor
    divisor: Tensor


class _Means(NamedTuple):
    """Columns of some modules: per_trace (N, d), a trace's mean activation; behaviours (C or 1, N, d), its means over
    the behaviours' positions, zero where it has none. With aliased means all behaviours share one."""

    per_trace: Tensor
    behaviours: Tensor


class _Gradients(NamedTuple):
    """Gradient rows (G, d) of one behaviour in some traces, with the trace (G,) of each."""

    behaviour: int
    rows: Tensor
    traces: Tensor


def draw(traces: int, resamples: int, seed: int = SEED) -> Tensor:
    """(resamples, traces): how often each trace is drawn."""
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.multinomial(traces, np.full(traces, 1 / traces), size=resamples))


def importance(
    paths: Sequence[Path],
    preset: str,
    slices: Mapping[str, slice],
    options: AttributionOptions,
    weights: Tensor,
    advance: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """(B, C, M) importance of M modules when trace n counts ``weights[b, n]`` times (B, N), in float64.

    The same as scores.score on a list of paths in which each stands that often. ``slices`` lie side by side, in
    order; ``advance`` is called with the number of modules done. Memory: the statistics' columns of one module, or
    of several up to _BLOCK_BYTES.
    """
    draws = _draws(paths, preset, options, weights)
    result = torch.zeros(len(weights), len(draws.present), len(slices), dtype=torch.float64)
    wheres = list(slices.values())
    for block in _blocks(wheres, len(paths)):
        first = wheres[block[0]].start
        columns = slice(first, wheres[block[-1]].stop)
        local = [slice(wheres[m].start - first, wheres[m].stop - first) for m in block]
        means = _means(paths, preset, columns, options)
        sums = torch.zeros(len(block), *draws.present.shape, dtype=torch.float64)
        for gradients in _gradients(paths, preset, columns):
            for number, where in enumerate(local):
                _add_products(sums[number, gradients.behaviour], gradients, means, where, draws, options)
        for number, (module, where) in enumerate(zip(block, local, strict=True)):
            lengths = _lengths(means, where, draws)
            result[:, :, module] = (sums[number].abs() * lengths / draws.divisor.clamp(min=1)).T
            advance(1)
    return result


def _draws(paths: Sequence[Path], preset: str, options: AttributionOptions, weights: Tensor) -> _Draws:
    traces = [statistics.load(path, preset, slice(0, 0)) for path in paths]
    data = [trace.presets[preset] for trace in traces]
    columns = weights.double().T
    present = torch.stack([each.row_counts > 0 for each in data], dim=1).double() @ columns
    spans = torch.stack([each.spans for each in data], dim=1).double() @ columns
    tokens = torch.tensor([trace.tokens for trace in traces], dtype=torch.float64)
    return _Draws(columns, columns.sum(0), tokens, present, present if options.divisor == "traces" else spans)


def _blocks(wheres: Sequence[slice], traces: int) -> Iterator[list[int]]:
    """Numbers of neighbouring modules whose means go into memory together."""
    # Float64: of each trace its mean and those of at most four behaviours, and gradients.
    widest = _BLOCK_BYTES // (8 * (5 * traces + _ROWS))
    block: list[int] = []
    for module, where in enumerate(wheres):
        if block and where.stop - wheres[block[0]].start > widest:
            yield block
            block = []
        block.append(module)
    if block:
        yield block


def _means(paths: Sequence[Path], preset: str, columns: slice, options: AttributionOptions) -> _Means:
    per_trace, behaviours = [], []
    for path in paths:
        trace = statistics.load(path, preset, columns)
        data = trace.presets[preset]
        rows = data.row_sums.double() / data.row_counts.double().clamp(min=1)[:, None]
        behaviours.append(rows.sum(0, keepdim=True) if options.alias_means else rows)
        per_trace.append(trace.activations.double() / trace.tokens)
    return _Means(torch.stack(per_trace), torch.stack(behaviours, dim=1))


def _gradients(paths: Sequence[Path], preset: str, columns: slice) -> Iterator[_Gradients]:
    """All gradient rows, those of several traces at once."""
    waiting: list[tuple[int, statistics.PresetStatistics]] = []
    for trace, path in enumerate(paths):
        waiting.append((trace, statistics.load(path, preset, columns).presets[preset]))
        if trace < len(paths) - 1 and sum(len(data.owners) for _, data in waiting) < _ROWS:
            continue
        for behaviour in torch.cat([data.owners for _, data in waiting]).unique().tolist():
            mine = [(number, data.gradients[data.owners == behaviour]) for number, data in waiting]
            yield _Gradients(
                behaviour,
                torch.cat([rows for _, rows in mine]).double(),
                torch.cat([torch.full((len(rows),), number) for number, rows in mine]),
            )
        waiting = []


def _add_products(
    sums: Tensor, gradients: _Gradients, means: _Means, where: slice, draws: _Draws, options: AttributionOptions
) -> None:
    """Add to (B,) the products uᵀg, summed over spans as ``options`` say; u is not yet scaled."""
    rows = gradients.rows[:, where]
    vectors = _of(means.behaviours, gradients.behaviour)[:, where]
    # (G, B): the behaviour's mean over the traces drawn that have it, minus the mean over all drawn.
    products = (rows @ vectors.T) @ draws.weights / draws.present[gradients.behaviour].clamp(min=1)
    products -= (rows @ means.per_trace[:, where].T) @ draws.weights / draws.drawn
    if options.absolute == "inside":
        products.abs_()
    sums += products.mul_(draws.weights[gradients.traces]).sum(0)


def _lengths(means: _Means, where: slice, draws: _Draws) -> Tensor:
    """(C, B) what scales a steering vector: length of the mean activation over all tokens, over its own length."""
    weights = draws.weights
    per_trace = means.per_trace[:, where]
    products = per_trace @ per_trace.T
    by_tokens = weights * draws.tokens[:, None]
    target = _quadratic(by_tokens, products, by_tokens) / by_tokens.sum(0) ** 2
    everything = _quadratic(weights, products, weights) / draws.drawn**2
    forms = []
    for rows in means.behaviours:
        vectors = rows[:, where]
        own = _quadratic(weights, vectors @ vectors.T, weights)
        mixed = _quadratic(weights, vectors @ per_trace.T, weights)
        forms.append((own, mixed / draws.drawn))
    lengths = []
    for behaviour, count in enumerate(draws.present.clamp(min=1)):
        own, mixed = _of(forms, behaviour)
        square = own / count**2 - 2 * mixed / count + everything
        is_zero = square <= _ROUNDING * (own / count**2 + everything)
        lengths.append(torch.where(is_zero, 0.0, target.clamp(min=0) / square).sqrt())
    return torch.stack(lengths)


def _of(shared: Any, behaviour: int) -> Any:
    """What belongs to a behaviour, or what all share."""
    return shared[behaviour if len(shared) > 1 else 0]


def _quadratic(left: Tensor, products: Tensor, right: Tensor) -> Tensor:
    """(B,) leftᵀ · products · right for every resample; left, right (N, B), products (N, N)."""
    return ((products.T @ left) * right).sum(0)


def summarise(scores: Sequence[float], samples: Tensor) -> dict[str, Any]:
    """Intervals of one behaviour, from its M scores and the (B, M) scores of the resamples that have it.

    intervals: [low, high] of each score, rank_intervals: of its rank, both the middle 95% of the resamples.
    stability: how alike a resample ranks the modules, Spearman's rho (mean, 5% quantile) and mean overlap of the
    TOP with the full sample's; ``resamples`` is B. All None where nothing was resampled or all scores are the same.
    """
    values = samples.numpy()
    if not len(values) or np.ptp(scores) == 0:
        return {"intervals": None, "rank_intervals": None, "stability": None}
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    ranks = artifact.ranks(values)
    low, high = (np.quantile(ranks, tail, axis=0, method="inverted_cdf").astype(int) for tail in tails)
    rho = _spearman(np.asarray(scores), values)
    overlap = ((ranks <= artifact.TOP) & (artifact.ranks(scores) <= artifact.TOP)).sum(1)
    return {
        # Six digits are more than a bootstrap has, and hide the last bits, which threads of a sum could change.
        "intervals": [[float(f"{x:.6g}") for x in pair] for pair in np.quantile(values, tails, axis=0).T],
        "rank_intervals": [[int(a), int(b)] for a, b in zip(low, high, strict=True)],
        "stability": {
            "spearman_mean": round(float(rho.mean()), 6),
            "spearman_p5": round(float(np.quantile(rho, 0.05)), 6),
            f"top{artifact.TOP}_overlap_mean": round(float(overlap.mean()), 6),
            "resamples": len(values),
        },
    }


def _spearman(scores: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """(B,) Spearman's rho of each sample with ``scores``; 0 for a sample that ranks nothing."""
    one, others = rankdata(scores), rankdata(samples, axis=1)
    one, others = one - one.mean(), others - others.mean(axis=1, keepdims=True)
    norms = np.sqrt((one**2).sum() * (others**2).sum(axis=1))
    rho: np.ndarray = np.divide(others @ one, norms, out=np.zeros(len(samples)), where=norms > 0)
    return rho


def intervals(
    paths: Sequence[Path],
    preset: str,
    slices: Mapping[str, slice],
    options: AttributionOptions,
    scores: Tensor,
    resamples: int,
    advance: Callable[[int], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """What ``summarise`` says of every behaviour, from (C, M) ``scores`` of all traces and so many resamples.

    A resample without a trace of a behaviour says nothing about that behaviour and doesn't count for it. A behaviour
    in fewer than two traces has no intervals: resampling it is no sample.
    """
    if not resamples:
        advance(len(slices))
        return [summarise(row.tolist(), torch.zeros(0, len(row))) for row in scores]
    weights = draw(len(paths), resamples)
    samples = importance(paths, preset, slices, options, weights, advance)
    # (N, C): which traces have which behaviour.
    having = torch.stack([statistics.load(path, preset, slice(0, 0)).presets[preset].row_counts > 0 for path in paths])
    return [
        summarise(row.tolist(), samples[(weights @ traces.long() > 0) & (traces.sum() > 1), behaviour])
        for behaviour, (row, traces) in enumerate(zip(scores, having.T, strict=True))
    ]
