"""KL from hidden states: against the definition in float64, whatever the size of the chunks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixprec.core.errors import UserError
from mixprec.numerics import divergence


def made(seed: int, positions: int = 11, vocabulary: int = 30) -> tuple[Tensor, torch.nn.Linear]:
    torch.manual_seed(seed)
    return torch.randn(positions, 8), torch.nn.Linear(8, vocabulary).requires_grad_(False)


@pytest.mark.parametrize("chunk", [1, 4, 11, 256])
def test_kl_is_that_of_the_definition(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(divergence, "CHUNK", chunk)
    (own, head), (original, other) = made(0), made(1)
    p = torch.nn.functional.linear(original.double(), other.weight.double(), other.bias.double()).softmax(-1)
    q = torch.nn.functional.linear(own.double(), head.weight.double(), head.bias.double()).softmax(-1)
    expected = (p * (p / q).log()).sum(-1)
    found = divergence.divergence(own, head, original, other)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    targets = torch.arange(11)
    whole = divergence.fidelity(own, head, original, other, targets)
    assert torch.equal(whole.kl, found)
    torch.testing.assert_close(whole.nll, -q[targets, targets].log(), rtol=1e-5, atol=1e-6)
    assert torch.equal(whole.agree, p.argmax(-1) == q.argmax(-1))


def test_no_positions_have_no_divergence_and_a_model_none_to_itself() -> None:
    states, head = made(0)
    assert divergence.divergence(states[:0], head, states[:0], head).shape == (0,)
    assert not divergence.divergence(states, head, states, head).any()


def test_other_vocabularies_are_refused() -> None:
    (states, head), (_, other) = made(0), made(0, vocabulary=31)
    with pytest.raises(UserError, match="predicts 30 tokens, the original 31"):
        divergence.divergence(states, head, states, other)
