"""What one module's inputs, output gradients and weight errors come to: the sums that scores are made of.

For a linear with inputs x_t (in,), a change ΔW (out, in) of its weight and gradients g_t (out,) of a loss at its
output, the change of the loss is d = Σ_t d_t with d_t = g_tᵀ ΔW x_t to first order. Where g is the gradient of a random
loss whose covariance is the Fisher information F of the model's own distribution, E d² = δᵀ F δ for the change δ of
all logits: twice the KL to second order. Squaring each d_t alone leaves out what tokens do together, and is steadier.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ModuleSums(NamedTuple):
    """Sums over the tokens of one passage for C candidates and R gradients, float64.

    slope (R, C): Σ_t d_t. square (R, C): Σ_t d_t². trace (R,): Σ_t ‖g_t‖² ‖x_t‖², the trace of the loss's Fisher
    information with respect to the weight. product (R, C): Σ_t Σ_i (g_ti y_ti)². output (C,): Σ_t ‖y_t‖².
    """

    slope: Tensor
    square: Tensor
    trace: Tensor
    product: Tensor
    output: Tensor


def module_sums(inputs: Tensor, gradients: Tensor, errors: Tensor) -> ModuleSums:
    """Sums for inputs (T, in), gradients (R, T, out) and weight errors (C, out, in), all of one type."""
    rows, candidates = len(gradients), len(errors)
    slope, square, product = (torch.zeros(rows, candidates, dtype=torch.float64) for _ in range(3))
    output = torch.zeros(candidates, dtype=torch.float64)
    for number, error in enumerate(errors):
        moved = inputs @ error.T
        terms = gradients * moved
        per_token = terms.sum(-1).cpu().double()
        slope[:, number] = per_token.sum(-1)
        square[:, number] = per_token.square().sum(-1)
        product[:, number] = terms.square_().sum((-1, -2)).cpu().double()
        output[number] = moved.square_().sum().cpu().double()
    lengths = inputs.square().sum(-1) * gradients.square().sum(-1)
    return ModuleSums(slope, square, lengths.sum(-1).cpu().double(), product, output)
