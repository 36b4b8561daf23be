"""What a method needs to know of the inputs x_t (in,) of a linear module: second moments, magnitudes, drift.

Sums over tokens, each with a weight, accumulated in float32 chunk by chunk; averages come out, so that statistics of
more tokens have the same scale. Linears that share their input share their statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from mixprec.numerics.products import Products

#: Columns of the second moments that are multiplied at once; blocks below the diagonal are mirrored, not computed.
_BLOCK = 192


class InputStatistics(NamedTuple):
    """Weighted means over tokens of a linear's inputs.

    hessian (in, in): x xᵀ, symmetric (GPTQ's H, arXiv 2210.17323 eq. 3, without its factor 2). mean_abs (in,): |x|.
    tokens: how many with a weight above 0. drift (in, in) or None: (x̃ − x) xᵀ, where x̃ is the input that the
    uncompressed model has at the same token (GPTAQ, arXiv 2504.02692, its ΔX Xᵀ).
    """

    hessian: Tensor
    mean_abs: Tensor
    tokens: int
    drift: Tensor | None = None


class InputSums:
    """Running sums behind ``InputStatistics`` for inputs of ``width`` numbers; ``products``: the type they multiply
    in."""

    def __init__(
        self, width: int, *, drift: bool = False, device: torch.device | str = "cpu", products: Products = "model"
    ) -> None:
        self._rounded = products == "bfloat16"
        self._hessian = torch.zeros(width, width, device=device)
        self._mean_abs = torch.zeros(width, device=device)
        self._drift = torch.zeros(width, width, device=device) if drift else None
        self._weight = 0.0
        self._tokens = 0

    def add(self, inputs: Tensor, weights: Tensor | None = None, full: Tensor | None = None) -> None:
        """Add inputs (…, in) with token weights (…), 1 where none are given; ``full`` (…, in): x̃, for the drift."""
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        if weights is None:
            weighted = rows
            self._weight += len(rows)
            self._tokens += len(rows)
        else:
            flat = weights.reshape(-1).to(rows)
            weighted = rows * flat[:, None]
            self._weight += float(flat.sum(dtype=torch.float64))
            self._tokens += int((flat > 0).sum())
        factors = (rows, weighted)
        if self._rounded and weights is not None:  # the same on both sides, or rounding would make it asymmetric
            factors = (rows * flat.sqrt()[:, None],) * 2
        known = inputs.dtype if weights is None else rows.dtype
        with _units_of(torch.bfloat16 if self._rounded else known):
            _add_symmetric(self._hessian, *factors)
        self._mean_abs += torch.linalg.vector_norm(weighted, ord=1, dim=0)
        if self._drift is not None:
            if full is None:
                raise ValueError("the drift needs the uncompressed model's inputs")
            with _units_of(torch.bfloat16 if self._rounded else rows.dtype):
                self._drift.addmm_((full.reshape(rows.shape).float() - rows).T, weighted)

    def join(self, add_up: Callable[[Sequence[Tensor]], object]) -> None:
        """Add the sums of others who saw other tokens: ``add_up`` adds tensors up over all of them, in place."""
        counts = torch.tensor([self._weight, self._tokens], dtype=torch.float64, device=self._hessian.device)
        add_up([self._hessian, self._mean_abs, counts, *(() if self._drift is None else (self._drift,))])
        self._weight, self._tokens = float(counts[0]), int(counts[1])

    def result(self) -> InputStatistics:
        """The means so far.

        Raises ValueError where no token with a weight above 0 was seen.
        """
        if self._weight <= 0:
            raise ValueError("no token has a weight above 0")
        drift = None if self._drift is None else self._drift / self._weight
        return InputStatistics(self._hessian / self._weight, self._mean_abs / self._weight, self._tokens, drift)


@contextmanager
def _units_of(dtype: torch.dtype) -> Iterator[None]:
    """With bfloat16, multiply float32 numbers in a processor's bfloat16 units, if it has any.

    They round inputs to bfloat16 and sum in float32: where the inputs were bfloat16 nothing is lost, and it takes less
    than half the time.
    """
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    try:
        if dtype == torch.bfloat16:
            settings.fp32_precision = "bf16"
        yield
    finally:
        settings.fp32_precision = before


def _add_symmetric(total: Tensor, rows: Tensor, weighted: Tensor) -> None:
    """total (in, in) += rowsᵀ weighted, a symmetric product: half of its blocks are computed."""
    width = total.shape[0]
    for start in range(0, width, _BLOCK):
        end = min(start + _BLOCK, width)
        total[start:end, start:].addmm_(rows[:, start:end].T, weighted[:, start:])
        total[end:, start:end] = total[start:end, end:].T
