"""GPTAQ (arXiv 2504.02692): GPTQ that aims at the uncompressed model's outputs, where GPTQ aims at its own inputs'.

Let x̃ be what the uncompressed model feeds to a linear where the model compressed so far feeds x. The objective is the
mean of ‖ŵ x − w x̃‖² ("asymmetric calibration") in place of ‖ŵ x − w x‖². D is the mean of (x̃ − x) xᵀ (the statistics'
drift); H = mean of x xᵀ, H⁻¹ = Uᵀ U, all in solving order.

Derivation. A column j that is settled owes the outputs w_j (x̃ − x)_j, besides its rounding error. As in GPTQ, columns
k > j pay as well as they can, by least squares on their inputs: Δw = w_j D_jF (H_FF)⁻¹, where F are the columns behind
j. The inverse of that trailing part of H is VᵀV, where V is the same part of U, so Δw is w_j times row j of

    P = triu(D Uᵀ, 1) U.

P is strictly upper triangular, and w_j is the weight that the uncompressed model has; so what is paid does not depend
on how anything is rounded, all of it can be paid in advance, W ← W + α W P, and GPTQ does the rest.

Nothing but the order of solving keeps columns in front of j, and j itself, from paying. Where all pay (``joint``), the
payments are those of the objective's minimum over all weights, before rounding: P = D Uᵀ U = D H⁻¹.

The released code differs in two points: it multiplies P by the weight as compensated so far (across blocks, by its
rounded value), which aims at outputs that the uncompressed model does not have; and it fits grids to weights that are
paid in part. α, 0.25 in the released code, is for the noise in D: what pays for drift on few tokens does not carry over
to others in full.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixprec.compress.gptq import DEFAULT_SEARCH, descended, searched, solve, transposed
from mixprec.compress.solving import Solved, Solver, Task
from mixprec.numerics.formats import Format
from mixprec.numerics.groupwise import Quantized, Search, scale_dtype_of
from mixprec.numerics.hessian import Factor

#: How much of the drift is made up for, as in the released code.
ALPHA = 0.25


def gptaq(
    weight: Tensor,
    factor: Factor,
    format: Format,
    drift: Tensor,
    *,
    alpha: float = ALPHA,
    joint: bool = False,
    block: int = 128,
    static_groups: bool = False,
    search: Search | None = DEFAULT_SEARCH,
    rests: Tensor | None = None,
) -> Quantized:
    """Codes and grid of ``weight`` (out, in), finite, for inputs whose Hessian is behind ``factor``.

    ``drift`` (in, in): the mean of (x̃ − x) xᵀ, in natural order. ``alpha``: how much of it is made up for, 0 to 1; with
    0, or without drift, the result is that of gptq, bit for bit. ``joint``: all columns pay for a column's drift; else,
    as in the paper, those that are solved after it. Everything else as in gptq.

    Raises ValueError where weight, factor and drift don't fit, and for NaN or infinite drift.
    """
    columns = transposed(weight, factor)
    _add_payments(columns, factor, drift, alpha, joint)
    return solve(columns, factor, format, scale_dtype_of(weight.dtype), block, static_groups, search, rests)


def _add_payments(columns: Tensor, factor: Factor, drift: Tensor, alpha: float, joint: bool) -> None:
    """Add α (W P)ᵀ to ``columns`` = Wᵀ (in, out), both in natural order."""
    if drift.shape != factor.upper.shape or not torch.isfinite(drift).all():
        raise ValueError(f"drift of shape {tuple(drift.shape)} for {len(factor.dead)} inputs, or NaN or infinite")
    upper, drift, order = factor.upper.to(columns.dtype), drift.to(columns.dtype), factor.order
    owing = columns
    if order is not None:
        drift, owing = drift[order[:, None], order], columns[order]
    owed = drift @ upper.T
    if not joint:
        owed.triu_(diagonal=1)
    payments = (upper.T @ (owed.T @ owing)).mul_(alpha)
    if order is None:
        columns.add_(payments)
    else:
        columns.index_add_(0, order, payments)


def _solve(task: Task) -> Solved:
    factor, drift = task.ordered, task.inputs.statistics.drift
    assert drift is not None  # the walk keeps the uncompressed model's states beside the others
    rests = task.room_for_rests()
    found = gptaq(task.weight, factor, task.grid, drift, search=searched(task), rests=rests)

    def target() -> Tensor:
        columns = transposed(task.weight, factor)
        _add_payments(columns, factor, drift, ALPHA, joint=True)  # each column is settled knowing all others
        return columns

    return descended(task, found, factor, rests, target)


SOLVER = Solver(_solve, stacks=True)
