from __future__ import annotations

import itertools

import pytest
import torch

from mixprec.sensitivity.sums import module_sums
from mixprec.walk.losses import at_logits, signed


def test_the_sums_are_those_of_plain_loops() -> None:
    random = torch.Generator().manual_seed(0)
    x, g, errors = (
        torch.randn(shape, generator=random, dtype=torch.float64) for shape in ((7, 5), (2, 7, 3), (4, 3, 5))
    )
    found = module_sums(x, g, errors)
    for r, c in itertools.product(range(2), range(4)):
        steps = [sum(float(g[r, t, i] * errors[c, i] @ x[t]) for i in range(3)) for t in range(7)]
        products = [float(g[r, t, i] * (errors[c, i] @ x[t])) ** 2 for t in range(7) for i in range(3)]
        assert float(found.slope[r, c]) == pytest.approx(sum(steps))
        assert float(found.square[r, c]) == pytest.approx(sum(step**2 for step in steps))
        assert float(found.product[r, c]) == pytest.approx(sum(products))
        assert float(found.output[c]) == pytest.approx(sum(float((errors[c] @ x[t]).square().sum()) for t in range(7)))
        trace = sum(float(torch.outer(g[r, t], x[t]).square().sum()) for t in range(7))
        assert float(found.trace[r]) == pytest.approx(trace)


def test_over_all_signs_the_gradients_have_the_fisher_information_as_their_covariance() -> None:
    p = torch.tensor([0.6, 0.25, 0.1, 0.04, 0.01], dtype=torch.float64)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=5)), dtype=torch.float64)
    e = signed(p.expand(len(signs), -1), signs)
    torch.testing.assert_close(e.mean(0), torch.zeros(5, dtype=torch.float64), atol=1e-15, rtol=0)
    torch.testing.assert_close(e.T @ e / len(e), torch.diag(p) - torch.outer(p, p))


def test_losses_at_the_logits_are_those_of_autograd() -> None:
    random = torch.Generator().manual_seed(0)
    z, other = (torch.randn(3, 6, generator=random, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([4, 0, 2])
    z.requires_grad_()
    (wanted,) = torch.autograd.grad(torch.nn.functional.cross_entropy(z, labels, reduction="sum"), z)
    torch.testing.assert_close(at_logits("loss", z.detach(), None, labels, random), wanted)
    kl = torch.nn.functional.kl_div(z.log_softmax(-1), other.softmax(-1), reduction="sum")
    (wanted,) = torch.autograd.grad(kl, z)
    torch.testing.assert_close(at_logits("kl", z.detach(), other, labels, random), wanted)


def test_sampled_labels_come_from_the_model() -> None:
    z = torch.tensor([[8.0, 0.0, 0.0]], dtype=torch.float64).expand(2000, -1)
    e = at_logits("sampled", z, None, torch.zeros(2000, dtype=torch.long), torch.Generator().manual_seed(0))
    assert abs(float(e.mean(0)[0])) < 0.005
    assert set(e.argmin(-1).tolist()) >= {0}
