"""Second-order tools for a linear's inputs: the factor that GPTQ and SparseGPT solve with, and output errors.

H (in, in) is the weighted mean of x xᵀ over tokens (numerics.statistics). A change Δ (out, in) of the weights moves
the outputs by tr(Δ H Δᵀ), the mean over tokens of ‖Δ x‖²: the objective of GPTQ (arXiv 2210.17323, eq. 1).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: Where damping 0 does not do, the first that is tried.
_LEAST_DAMPING = 1e-4
#: Triangular matrices up to this width are inverted by substitution, wider ones by halves.
_SUBSTITUTED = 96


class SingularHessian(ValueError):
    """No damping that was tried makes the Hessian positive definite."""


class Factor(NamedTuple):
    """The inverse of a damped Hessian, H⁻¹ = Uᵀ U, in the order in which columns are solved.

    upper (in, in): U, upper triangular with a positive diagonal, float32 (float64 of a float64 Hessian), 0 below the
    diagonal. Row j is all that removing column j needs: U[j, j]² is entry (j, j) of the inverse of H restricted to
    columns j and later (arXiv 2210.17323, step 3). order (in,) long: order[j] is the column that is solved as the
    j-th; None for the natural order. dead (in,) bool, in natural order: inputs that were never active. damping: what
    was added to the diagonal, relative to its mean over active inputs. retries: how often it had to be raised.
    """

    upper: Tensor
    order: Tensor | None
    dead: Tensor
    damping: float
    retries: int


def factorize(
    hessian: Tensor,
    *,
    damping: float = 0.01,
    act_order: bool = False,
    group_size: int | None = None,
    max_retries: int = 5,
) -> Factor:
    """The factor of ``hessian`` (in, in), symmetric, with ``damping`` · (mean of its diagonal) added to the diagonal.

    ``act_order``: columns by falling diagonal; with ``group_size``, groups of that many by their falling mean and only
    columns of a group among themselves. Dead inputs, whose diagonal is 0, get diagonal 1 and don't count in the mean.
    Where the damped Hessian is not positive definite, damping is raised tenfold, at most ``max_retries`` times.
    Computed in float64; see _upper_factor.

    Raises SingularHessian where no damping helps, ValueError for NaN or infinite entries or a negative damping.
    """
    if damping < 0:
        raise ValueError(f"damping must not be negative, it is {damping}")
    if not torch.isfinite(hessian).all():
        raise ValueError("the Hessian holds NaN or infinite entries: some input of the linear was not finite")
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    order = activation_order(diagonal, group_size) if act_order else None
    work = hessian.to(torch.float64, copy=True)
    work.diagonal().masked_fill_(dead, 1.0)
    mean = float(diagonal[~dead].mean(dtype=torch.float64)) if not bool(dead.all()) else 0.0
    backwards = torch.arange(len(dead) - 1, -1, -1, device=hessian.device) if order is None else order.flip(0)
    work = work[backwards[:, None], backwards]
    live = (~dead[backwards]).to(work.dtype)
    added = 0.0
    for retries in range(max_retries + 1):
        work.diagonal().add_(live, alpha=damping * mean - added)
        added = damping * mean
        lower, failed = torch.linalg.cholesky_ex(work)
        if not bool(failed):
            del work  # as large as the Hessian, which may be a large part of memory
            upper = _upper_factor(lower).to(torch.promote_types(hessian.dtype, torch.float32))
            return Factor(upper, order, dead, damping, retries)
        if retries < max_retries:
            damping = max(10 * damping, _LEAST_DAMPING)
    raise SingularHessian(
        f"the Hessian ({len(dead)} inputs, mean of its diagonal {mean:.3g}) is not positive definite even with "
        f"damping {damping:.3g} of that mean; were the inputs gathered correctly?"
    )


def activation_order(diagonal: Tensor, group_size: int | None = None) -> Tensor:
    """Columns (in,) long by falling ``diagonal`` (in,), equal ones in natural order; see factorize for groups."""
    order = torch.argsort(diagonal, descending=True, stable=True)
    if group_size is None:
        return order
    group = torch.arange(len(diagonal), device=diagonal.device) // group_size
    sizes = torch.bincount(group)
    means = torch.zeros(len(sizes), dtype=torch.float64, device=diagonal.device).index_add_(0, group, diagonal.double())
    rank = torch.argsort(torch.argsort(means / sizes, descending=True, stable=True))
    return order[torch.argsort(rank[group[order]], stable=True)]


def output_error(delta: Tensor, hessian: Tensor) -> float:
    """tr(Δ H Δᵀ) of a change ``delta`` (out, in) of the weights: the mean over tokens of ‖Δ x‖²; summed in float64."""
    wide = torch.promote_types(torch.promote_types(delta.dtype, hessian.dtype), torch.float32)
    delta = delta.to(wide)
    return float((delta @ hessian.to(wide)).mul_(delta).sum(dtype=torch.float64))


def relative_output_error(weight: Tensor, restored: Tensor, hessian: Tensor) -> float:
    """√(tr(Δ H Δᵀ) / tr(W H Wᵀ)) with Δ = W − Ŵ, both (out, in). Where all outputs are 0, √tr(Δ H Δᵀ)."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    error = max(output_error(wide - restored, hessian), 0.0)
    power = output_error(wide, hessian)
    return float((error / power if power > 0 else error) ** 0.5)


def _upper_factor(lower: Tensor) -> Tensor:
    """U with H⁻¹ = Uᵀ U from the Cholesky factor ``lower`` of H with rows and columns reversed, which is overwritten.

    With J the reversal, J H J = L Lᵀ gives H = (J L J)(J L J)ᵀ, whose first factor is upper triangular; so
    U = (J L J)⁻¹ = J L⁻¹ J. One factorization and one triangular inverse, where Cholesky, inverse, Cholesky again lose
    the condition number of H a second time.
    """
    _invert_lower(lower)
    return lower.flip(0, 1)


def _invert_lower(lower: Tensor) -> None:
    """Invert a lower triangular matrix in place, by halves; substitution into an identity is three times the work."""
    width = len(lower)
    if width <= _SUBSTITUTED:
        eye = torch.eye(width, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, eye, upper=False))
        return
    half = width // 2
    first, second, below = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    _invert_lower(first)
    _invert_lower(second)
    below.copy_((second @ below @ first).neg_())
