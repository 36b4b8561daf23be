"""Saliences against plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixprec.numerics.salience import normalised, row_groups, saliences


@given(st.integers(1, 200), st.integers(1, 20))
def test_groups_are_neighbours_and_nearly_equal(rows: int, groups: int) -> None:
    found = [range(rows)[part] for part in row_groups(rows, groups)]
    assert [row for part in found for row in part] == list(range(rows))
    assert len(found) == min(rows, groups)
    assert max(map(len, found)) - min(map(len, found)) <= 1


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))
def test_saliences_are_means_of_squares(draws: int, tokens: int, rows: int, groups: int) -> None:
    gradients = torch.randn(draws, tokens, rows, generator=torch.Generator().manual_seed(rows))
    found = saliences(gradients, groups)
    for token in range(tokens):
        for number, part in enumerate(row_groups(rows, groups)):
            squares = [float(g) ** 2 for draw in gradients.double() for g in draw[token, part]]
            assert float(found[token, number]) == pytest.approx(sum(squares) / len(squares), rel=1e-5)


@given(st.integers(0, 10**6), st.floats(0.1, 1.0), st.floats(1e-12, 1e6))
def test_weights_have_mean_one_and_keep_their_order(seed: int, power: float, scale: float) -> None:
    found = torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(seed)) * scale
    weights = normalised(found, power)
    torch.testing.assert_close(weights.mean((0, 1)), torch.ones(2), rtol=1e-4, atol=0)
    assert (weights.flatten(0, 1).diff(dim=0) * found.flatten(0, 1).diff(dim=0) >= 0).all()


def test_where_all_gradients_vanish_tokens_count_the_same() -> None:
    found = torch.zeros(2, 3, 2)
    found[0, 1, 1] = 4.0
    weights = normalised(found)
    assert torch.equal(weights[..., 0], torch.ones(2, 3))
    assert float(weights[0, 1, 1]) == 6.0
    assert float(weights[..., 1].sum()) == 6.0
