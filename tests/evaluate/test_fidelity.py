"""Fidelity against the definition, computed in float64 from the logits of whole models."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch

from mixprec.core.errors import UserError
from mixprec.evaluate import fidelity
from mixprec.evaluate.passages import Passage
from mixprec.models.head import Head
from mixprec.models.load import LoadedModel
from mixprec.numerics import divergence
from mixprec.numerics.divergence import TokenFidelity

PASSAGES = [Passage(torch.randint(300, (length,), generator=torch.manual_seed(length))) for length in (41, 2, 17)]


def made(architecture: str = "llama", seed: int = 0, **options: Any) -> LoadedModel:
    """A model whose predictions are anything but flat."""
    loaded = tiny.build(architecture, seed=seed, **options)
    with torch.no_grad():
        loaded.model.lm_head.weight.mul_(30)
    return loaded


def measured(evaluated: LoadedModel, original: LoadedModel) -> list[TokenFidelity]:
    return fidelity.compare(
        PASSAGES,
        fidelity.hidden_states(evaluated, PASSAGES, "evaluated"),
        Head.of(evaluated.model),
        list(fidelity.hidden_states(original, PASSAGES, "original")),
        Head.of(original.model),
    )


def defined(evaluated: LoadedModel, original: LoadedModel, passage: Passage) -> TokenFidelity:
    """The definition, position by position."""
    with torch.no_grad():
        q, p = (
            loaded.model(input_ids=passage.tokens[None]).logits[0].double().log_softmax(-1)
            for loaded in (evaluated, original)
        )
    rows = range(len(passage.tokens) - 1)
    return TokenFidelity(
        nll=torch.stack([-q[t, passage.tokens[t + 1]] for t in rows]),
        kl=torch.stack([sum(p[t, v].exp() * (p[t, v] - q[t, v]) for v in range(p.shape[1])) for t in rows]),  # type: ignore[misc]
        agree=torch.stack([q[t].argmax() == p[t].argmax() for t in rows]),
    )


@pytest.mark.parametrize("chunk", [1, 16, 40, 256])
def test_llama(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(divergence, "CHUNK", chunk)
    check(made(seed=1), made(seed=0))


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("architecture", ["gemma2", "gemma3_text"])
def test_a_soft_cap_belongs_to_the_distribution(architecture: str, cap: float | None) -> None:
    check(*(made(architecture, seed, final_logit_softcapping=cap) for seed in (1, 0)))


def check(evaluated: LoadedModel, original: LoadedModel) -> None:
    results = measured(evaluated, original)
    assert max(result.kl.max() for result in results) > 0.1
    for passage, found in zip(PASSAGES, results, strict=True):
        expected = defined(evaluated, original, passage)
        assert found.kl.shape == found.nll.shape == found.agree.shape == (len(passage.tokens) - 1,)
        assert found.kl.dtype == found.nll.dtype == torch.float64
        torch.testing.assert_close(found.nll, expected.nll, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.kl, expected.kl, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.agree, expected.agree)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_exactly_itself(dtype: torch.dtype) -> None:
    loaded = made()
    loaded.model.to(dtype)
    for passage, found in zip(PASSAGES, measured(loaded, loaded), strict=True):
        assert found.kl.tolist() == [0.0] * (len(passage.tokens) - 1)
        assert found.agree.all()
        assert found.nll.min() > 0


def test_the_direction_is_original_against_evaluated() -> None:
    one, other = made(seed=0), made(seed=1)
    there, back = (torch.cat([result.kl for result in measured(*pair)]) for pair in ((one, other), (other, one)))
    assert not torch.allclose(there, back, rtol=0.01)


def test_broken_weights_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = made()
    broken.model.model.norm.weight.data[0] = math.nan
    with pytest.raises(UserError, match="logits are NaN"):
        measured(broken, made())


def test_models_with_other_vocabularies() -> None:
    with pytest.raises(UserError, match="predicts 384 tokens, the original 500"):
        measured(made(), made(vocab_size=500))
    with pytest.raises(UserError, match=r"evaluated: token \d+ is beyond the model's 100"):
        measured(made(vocab_size=100), made())
