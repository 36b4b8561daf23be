"""Magnitude pruning and Wanda against plain loops; which method is better on correlated inputs."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from mixprec.compress.magnitude import magnitude
from mixprec.compress.sparsegpt import refine, sparsegpt
from mixprec.compress.wanda import wanda
from mixprec.numerics.hessian import factorize, output_error
from mixprec.numerics.sparsity import Sparsity, parse_sparsity


def sample(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the mean of x xᵀ of inputs with unequal sizes that go together."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    inputs = torch.randn(4 * columns, columns, generator=generator) @ mixing
    inputs *= torch.rand(columns, generator=generator) + 0.2
    return weight, inputs.T @ inputs / len(inputs)


@pytest.mark.parametrize("text", ["0.5", "0.3", "2:4"])
def test_magnitude_removes_the_smallest_of_the_matrix(text: str) -> None:
    weight, _ = sample(6, 20)
    sparsity = parse_sparsity(text)
    pruned = magnitude(weight, sparsity)
    gone = pruned == 0
    assert torch.equal(pruned[~gone], weight[~gone])
    if sparsity.pattern:
        for group in weight.reshape(-1, 4):
            by_size = group.abs().sort().values
            assert set(magnitude(group[None], sparsity)[0].abs().tolist()) == {0.0, *by_size[2:].tolist()}
    else:
        assert int(gone.sum()) == round(sparsity.fraction * weight.numel())
        assert weight[gone].abs().max() <= weight[~gone].abs().min()


@pytest.mark.parametrize("text", ["0.5", "0.3", "2:4"])
def test_wanda_equals_loops(text: str) -> None:
    weight, hessian = sample(5, 18)
    sparsity = parse_sparsity(text)
    kept, group = sparsity.pattern or (None, 18)
    expected = weight.tolist()
    norms = [hessian[column, column].item() ** 0.5 for column in range(18)]
    for row in expected:
        scores = [abs(value) * norm for value, norm in zip(row, norms, strict=True)]
        for start in range(0, 18, group):
            members = range(start, min(start + group, 18))
            count = round(sparsity.fraction * 18) if kept is None else len(members) * (group - kept) // group
            for column in sorted(members, key=lambda column: scores[column])[:count]:
                row[column] = 0.0
    assert wanda(weight, hessian.diagonal(), sparsity).tolist() == expected


def test_wanda_removes_dead_inputs_first() -> None:
    weight, hessian = sample(5, 16)
    diagonal = hessian.diagonal().clone()
    diagonal[[2, 9]] = 0
    weight[:, [2, 9]] *= 100
    assert bool((wanda(weight, diagonal, Sparsity(2 / 16)) == 0)[:, [2, 9]].all())


def test_wanda_with_equal_inputs_compares_sizes_within_rows() -> None:
    weight, _ = sample(4, 16)
    pruned = wanda(weight, torch.ones(16), Sparsity(0.5))
    for row, before in zip(pruned, weight, strict=True):
        assert torch.equal(row, magnitude(before[None], Sparsity(0.5))[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_stay(dtype: torch.dtype) -> None:
    weight, hessian = sample(4, 16)
    for pruned in (
        magnitude(weight.to(dtype), Sparsity(0.5)),
        wanda(weight.to(dtype), hessian.diagonal(), Sparsity(0.5)),
    ):
        assert pruned.dtype == dtype
        assert int((pruned == 0).sum()) == 32


def test_a_diagonal_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="16 input columns"):
        wanda(torch.ones(2, 16), torch.ones(15), Sparsity(0.5))


@pytest.mark.parametrize("text", ["0.5", "0.7", "2:4", "4:8"])
@pytest.mark.parametrize("seed", range(3))
def test_what_sees_more_does_better(text: str, seed: int) -> None:
    weight, hessian = sample(48, 64, seed)
    sparsity = parse_sparsity(text)
    solved = sparsegpt(weight, factorize(hessian), sparsity)
    errors = [
        output_error(weight - pruned, hessian)
        for pruned in (
            magnitude(weight, sparsity),
            wanda(weight, hessian.diagonal(), sparsity),
            solved.weight,
            refine(weight, solved.weight, solved.mask, hessian),
        )
    ]
    assert all(better < worse for worse, better in pairwise(errors))
