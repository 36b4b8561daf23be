"""The Hill estimator against NumPy's singular values and the formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mixprec.numerics.spectrum import Tail, eigenvalues, hill_alpha


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """A weight whose singular values fall like those of trained ones: a bulk and a tail."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    strong = torch.randn(rows, 6, generator=generator) * torch.tensor([8.0, 5.0, 3.0, 2.0, 1.5, 1.0])
    return (weight + strong @ torch.randn(6, columns, generator=generator)) / columns**0.5


def spectrum(weight: torch.Tensor) -> np.ndarray:
    return np.sort(np.linalg.svd(weight.double().numpy(), compute_uv=False) ** 2)


def fitted(values: np.ndarray, start: int) -> tuple[float, float]:
    """alpha and Kolmogorov–Smirnov distance of the tail that begins with values[start]."""
    tail = values[start:]
    alpha = 1 + len(tail) / sum(np.log(value) - np.log(tail[0]) for value in tail)
    model = [1 - (value / tail[0]) ** (1 - alpha) for value in tail]
    return alpha, max(abs(model[index] - index / len(tail)) for index in range(len(tail)))


def reference(values: np.ndarray, tail: Tail) -> float:
    if tail == "median":
        return fitted(values, len(values) // 2)[0]
    counts, edges = np.histogram(np.log10(values), bins=100)
    peak = 10 ** edges[counts.argmax()]
    lowest = np.log10(0.95 * peak) if tail == "released" else 0.95 * peak
    starts = [index for index in range(len(values) - 1) if lowest <= values[index] <= 1.5 * peak]
    return min((fitted(values, start) for start in starts), key=lambda pair: pair[1])[0]


@pytest.mark.parametrize("shape", [(40, 40), (30, 90), (90, 30)])
@pytest.mark.parametrize("tail", ["peak", "released", "median"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_formulas(shape: tuple[int, int], tail: Tail, seed: int) -> None:
    weight = matrix(*shape, seed)
    assert hill_alpha(weight, tail) == pytest.approx(reference(spectrum(weight), tail), rel=1e-9)


def test_the_released_search_goes_below_the_peak() -> None:
    different = [
        seed for seed in range(10) if hill_alpha(matrix(40, 60, seed), "released") != hill_alpha(matrix(40, 60, seed))
    ]
    assert different


@pytest.mark.parametrize("k", [1, 5, 29])
def test_equals_the_papers_formula(k: int) -> None:
    weight = matrix(30, 50)
    values = spectrum(weight)
    total = sum(np.log(values[-index] / values[-k - 1]) for index in range(1, k + 1))
    assert hill_alpha(weight, k) == pytest.approx(1 + k / total, rel=1e-9)


def test_finds_the_exponent_of_a_power_law() -> None:
    # Quantiles of the density λ^-a above 1 are (1 - q)^(-1 / (a - 1)).
    quantiles = (np.arange(400) + 0.5) / 400
    for exponent in (2.0, 3.5):
        values = (1 - quantiles) ** (-1 / (exponent - 1))
        weight = torch.diag(torch.from_numpy(np.sqrt(values)))
        assert hill_alpha(weight, 200) == pytest.approx(exponent, rel=0.02)
        assert hill_alpha(weight, "median") == pytest.approx(exponent, rel=0.02)
        assert hill_alpha(weight, "peak") == pytest.approx(exponent, rel=0.05)


@pytest.mark.parametrize("tail", ["peak", "median", 10])
def test_a_factor_changes_nothing(tail: Tail | int) -> None:
    weight = matrix(30, 40)
    assert hill_alpha(1000 * weight, tail) == pytest.approx(hill_alpha(weight, tail), rel=1e-6)
    assert hill_alpha(weight.T, tail) == pytest.approx(hill_alpha(weight, tail), rel=1e-9)


def test_zero_eigenvalues_are_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    thin = torch.randn(40, 12, generator=generator, dtype=torch.float64)
    weight = thin @ torch.randn(12, 50, generator=generator, dtype=torch.float64)
    values = spectrum(weight)
    assert len(eigenvalues(weight)) == 12
    assert eigenvalues(weight).tolist() == pytest.approx(values[-12:], rel=1e-9)
    assert hill_alpha(weight, "median") == pytest.approx(fitted(values[-12:], 6)[0], rel=1e-9)


@pytest.mark.parametrize("weight", [torch.zeros(4, 4), torch.eye(5), torch.ones(3, 3), torch.ones(1, 8)])
@pytest.mark.parametrize("tail", ["peak", "median", 1])
def test_a_spectrum_without_a_slope_is_refused(weight: torch.Tensor, tail: Tail | int) -> None:
    with pytest.raises(ValueError, match="no spectrum to fit"):
        hill_alpha(weight, tail)


@pytest.mark.parametrize("k", [0, -1, 30])
def test_k_must_leave_an_eigenvalue(k: int) -> None:
    with pytest.raises(ValueError, match="k must be 1 to 29"):
        hill_alpha(matrix(30, 40), k)
