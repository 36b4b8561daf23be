"""A linear-chain conditional random field over sentences, in numpy.

Lafferty, McCallum and Pereira, 2001. The score of a labelling is the sum of its sentences' scores, of one weight for
each pair of neighbouring labels (another one where a paragraph begins between them) and of one for the first label.
Training minimises the negative log-likelihood plus ``penalty / 2`` times the sum of squared weights, with L-BFGS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]
#: Annotation's recursions are scaled to a sum of 1 every so many steps: 64-bit numbers hold what comes between.
_SCALED = 8


class Weights(NamedTuple):
    """``emission`` (features, labels); ``pairs`` (2, labels, labels): in a paragraph, across; ``first`` (labels,).

    ``pairs[0, a, b]``: label b behind label a in one paragraph.
    """

    emission: Floats
    pairs: Floats
    first: Floats


class Chains(NamedTuple):
    """Sequences for training, all in a row.

    ``rows``: every sentence's feature numbers. ``labels`` and ``opens`` (sentences,), ``lengths`` and ``weight``
    (sequences,): how many sentences each has, and how much it counts.
    """

    rows: Sequence[Sequence[int]]
    labels: Integers
    opens: NDArray[np.bool_]
    lengths: Integers
    weight: Floats


def marginals(scores: Floats, opens: NDArray[np.bool_], weights: Weights) -> Floats:
    """The probability of every label of every sentence of one sequence: (sentences, labels).

    ``scores`` (sentences, labels) are the sentences' own; ``opens`` says where paragraphs begin.
    """
    own = np.exp(np.asarray(scores - scores.max(1, keepdims=True), np.float64))
    within, across = np.exp(np.asarray(weights.pairs, np.float64))
    pairs = [across if each else within for each in opens.tolist()]
    forward, backward = np.empty_like(own), np.ones_like(own)
    state = np.exp(np.asarray(weights.first, np.float64)) * own[0]
    forward[0] = state / state.sum()
    for step in range(1, len(own)):
        state = state @ pairs[step] * own[step]
        if step % _SCALED == 0:
            state /= state.sum()
        forward[step] = state
    state = backward[-1]
    for step in range(len(own) - 1, 0, -1):
        state = pairs[step] @ (own[step] * state)
        if step % _SCALED == 0:
            state /= state.sum()
        backward[step - 1] = state
    both = forward * backward
    chances: Floats = both / both.sum(1, keepdims=True)
    return chances


def train(chains: Chains, features: int, labels: int, penalty: float, steps: int = 150) -> Weights:
    """The weights that fit the sequences; deterministic."""
    from scipy.optimize import minimize  # whoever only annotates needs no SciPy
    from scipy.sparse import csr_array

    where = np.repeat(np.arange(len(chains.rows)), [len(row) for row in chains.rows])
    matrix = csr_array(
        (np.ones(len(where)), (where, np.concatenate([np.asarray(row, dtype=np.int64) for row in chains.rows]))),
        shape=(len(chains.rows), features),
    )
    turned = matrix.T.tocsr()
    padded = _Padded(chains, labels)

    def loss(flat: Floats) -> tuple[float, Floats]:
        weights = _unpacked(flat, features, labels)
        value, by_sentence, pairs, first = padded.gradient(np.asarray(matrix @ weights.emission), weights)
        slope = np.concatenate([np.asarray(turned @ by_sentence).ravel(), pairs.ravel(), first])
        return value + penalty / 2 * float(flat @ flat), slope + penalty * flat

    size = features * labels + 2 * labels * labels + labels
    found = minimize(loss, np.zeros(size), jac=True, method="L-BFGS-B", options={"maxiter": steps, "maxfun": 2 * steps})
    return _unpacked(found.x, features, labels)


def _unpacked(flat: Floats, features: int, labels: int) -> Weights:
    middle, end = features * labels, features * labels + 2 * labels * labels
    return Weights(flat[:middle].reshape(features, labels), flat[middle:end].reshape(2, labels, labels), flat[end:])


class _Padded:
    """The sequences side by side, filled up to the longest."""

    def __init__(self, chains: Chains, labels: int) -> None:
        longest, count = int(chains.lengths.max()), len(chains.lengths)
        self._place = np.concatenate(
            [number * longest + np.arange(length) for number, length in enumerate(chains.lengths)]
        )
        self._shape = (count, longest)
        self._kept = self._spread(np.ones(len(self._place), dtype=bool))
        self._opens = self._spread(chains.opens)
        self._weight = chains.weight
        truth = self._spread(np.eye(labels)[chains.labels])
        self._truth = truth
        both = truth[:, :-1, :, None] * truth[:, 1:, None, :]
        self._true_pairs = _by_opening(both, self._opens, chains.weight)

    def _spread(self, values: NDArray[Any]) -> NDArray[Any]:
        out = np.zeros((self._shape[0] * self._shape[1], *values.shape[1:]), values.dtype)
        out[self._place] = values
        return out.reshape(*self._shape, *values.shape[1:])

    def gradient(self, scores: Floats, weights: Weights) -> tuple[float, Floats, Floats, Floats]:
        """The weighted negative log-likelihood, and its slopes: by sentence and label, by pair, by first label."""
        spread = self._spread(scores)
        total, single, both = _sums(spread, self._opens, self._kept, weights)
        expected = _by_opening(both, self._opens, self._weight)
        true_score = (
            np.einsum("ntl,ntl,n->", spread, self._truth, self._weight)
            + float((self._true_pairs * weights.pairs).sum())
            + float(self._weight @ (self._truth[:, 0] @ weights.first))
        )
        slope = self._weight[:, None, None] * (single - self._truth) * self._kept[:, :, None]
        return (
            float(self._weight @ total) - float(true_score),
            slope.reshape(-1, slope.shape[-1])[self._place],
            expected - self._true_pairs,
            slope[:, 0].sum(0),
        )


def _by_opening(both: Floats, opens: NDArray[np.bool_], weight: Floats) -> Floats:
    """Sums over pairs of neighbours: (2, labels, labels)."""
    return np.stack([np.einsum("ntab,nt,n->ab", both, opens[:, 1:] == across, weight) for across in (False, True)])


def _sums(
    scores: Floats, opens: NDArray[np.bool_], kept: NDArray[np.bool_], weights: Weights
) -> tuple[Floats, Floats, Floats]:
    """Log of the sum over all labellings (n,), marginals (n, t, labels) and those of pairs (n, t - 1, labels, labels).

    The forward and backward recursions with every step scaled to a sum of 1.
    """
    count, longest, _ = scores.shape
    top = scores.max(2, keepdims=True)
    own = np.exp(scores - top)
    pairs = np.exp(weights.pairs)
    forward, backward = np.empty_like(own), np.ones_like(own)
    scale = np.ones((count, longest))
    state = np.exp(weights.first) * own[:, 0]
    for step in range(longest):
        if step:
            moved = np.where(opens[:, step, None], forward[:, step - 1] @ pairs[1], forward[:, step - 1] @ pairs[0])
            state = np.where(kept[:, step, None], moved * own[:, step], forward[:, step - 1])
        scale[:, step] = state.sum(1)
        forward[:, step] = state / scale[:, step, None]
    for step in range(longest - 2, -1, -1):
        ahead = own[:, step + 1] * backward[:, step + 1]
        back = np.where(opens[:, step + 1, None], ahead @ pairs[1].T, ahead @ pairs[0].T) / scale[:, step + 1, None]
        backward[:, step] = np.where(kept[:, step + 1, None], back, backward[:, step + 1])
    single = forward * backward
    single /= single.sum(2, keepdims=True)
    ahead = own[:, 1:] * backward[:, 1:] / scale[:, 1:, None]
    both = forward[:, :-1, :, None] * pairs[opens[:, 1:].astype(int)] * ahead[:, :, None, :]
    both *= kept[:, 1:, None, None]
    total = (np.log(scale) * kept).sum(1) + (top[:, :, 0] * kept).sum(1)
    return total, single, both
