"""Drawing against a plain loop over sorted probabilities."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixprec.evaluate.engines import sampling
from mixprec.evaluate.engines.sampling import draw


def plain(logits: torch.Tensor, number: float, temperature: float, top_p: float) -> set[int]:
    """The token, and its neighbours where the number lies within rounding of a border."""
    probabilities = (logits.double() / temperature).softmax(-1)
    order = sorted(range(len(logits)), key=lambda token: -float(probabilities[token]))
    kept, mass = [], 0.0
    for token in order:
        if mass >= top_p - 1e-6 and kept:
            break
        kept.append(token)
        mass += float(probabilities[token])
    found, below = set(), 0.0
    for token in kept:
        share = float(probabilities[token]) / mass
        if below - 1e-4 <= number <= below + share + 1e-4:
            found.add(token)
        below += share
    return found


class Fixed(random.Random):
    def __init__(self, number: float) -> None:
        super().__init__(0)
        self.number = number

    def random(self) -> float:
        return self.number


@given(
    st.lists(st.floats(-8, 8), min_size=1, max_size=30),
    st.floats(0, 1, exclude_max=True),
    st.floats(0.1, 3),
    st.floats(0.01, 1),
)
def test_a_draw_is_the_inverse_of_the_cut_distribution(
    values: list[float], number: float, temperature: float, top_p: float
) -> None:
    # Equal values have no order: told apart by more than rounding.
    logits = torch.tensor([value + 0.01 * index for index, value in enumerate(values)])
    for candidates in (2, 512):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampling, "_CANDIDATES", candidates)
            token = int(draw(logits[None], [Fixed(number)], temperature, top_p)[0])
        probabilities = (logits.double() / temperature).softmax(-1)
        near = [t for t in range(len(values)) if abs(float(probabilities[t] - probabilities[token])) < 1e-6]
        assert plain(logits, number, temperature, top_p) & set(near)


def test_frequencies_are_those_of_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -6.0])
    sources = [random.Random(seed) for seed in range(20_000)]
    counts = draw(logits.expand(20_000, -1), sources, 1.0, 0.95).bincount(minlength=4)
    expected = logits.softmax(-1)
    expected[3] = 0  # the three others have more than 95%
    assert torch.allclose(counts / 20_000, expected / expected.sum(), atol=0.015)
    assert counts[3] == 0


def test_greedy_draws_no_number() -> None:
    source = random.Random(1)
    assert draw(torch.tensor([[0.0, 3.0, 1.0]]), [source], 0, 0.95).tolist() == [1]
    assert source.random() == random.Random(1).random()
