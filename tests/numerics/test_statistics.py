"""Second moments against float64, whatever units multiply them."""

from __future__ import annotations

import pytest
import torch

from mixprec.numerics.statistics import InputSums


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("weighted", [False, True])
def test_moments_are_those_of_float64(dtype: torch.dtype, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    # Weights and a mean that bfloat16 can't hold: products of rounded inputs would be off by 1e-3.
    inputs = (torch.randn(2, 400, 250, generator=generator) + 0.3).to(dtype)
    weights = torch.rand(2, 400, generator=generator) if weighted else None
    sums = InputSums(250)
    for rows, share in zip(inputs, [None, None] if weights is None else weights, strict=True):
        sums.add(rows, share)
    found = sums.result()

    exact = inputs.double().flatten(0, 1)
    shares = torch.ones(800, dtype=torch.float64) if weights is None else weights.double().flatten()
    hessian = (exact * shares[:, None]).T @ exact / shares.sum()
    # float32 sums of 800 products: how they are blocked, and so their last digits, differs between processors.
    assert (found.hessian - hessian).abs().max() < 1e-5 * hessian.abs().max()
    torch.testing.assert_close(found.mean_abs.double(), (exact.abs().T @ shares) / shares.sum(), rtol=1e-5, atol=0)
    assert found.tokens == int((shares > 0).sum())


def test_units_are_left_as_they_were() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    InputSums(8).add(torch.ones(3, 8, dtype=torch.bfloat16))
    assert torch.backends.mkldnn.matmul.fp32_precision == before
