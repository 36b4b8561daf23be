"""The losses whose gradients score modules, at the model's logits: z of one position, p = softmax(z).

``kl``: KL(original ‖ this model), whose gradient is p − p_original; zero at the original itself. ``loss``: the text's
cross-entropy, p − onehot(next token). ``fisher``: a random loss with gradient e = √p ∘ ξ − p (√pᵀ ξ) for signs ξ, whose
mean is 0 and whose covariance is diag(p) − p pᵀ: the Fisher information of the model's own distribution, which is the
Hessian of the KL. Labels drawn from p (``sampled``) have the same covariance and a larger variance: where p is peaked,
nearly all labels say nothing.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mixprec.models.head import Head
from mixprec.models.weights import norm_of

Loss = Literal["fisher", "sampled", "kl", "loss"]
#: Positions whose logits exist at once.
_CHUNK = 64


class Row(NamedTuple):
    """One gradient: of ``loss``, its positions weighted as the target ``target`` says; ``draw`` numbers random ones."""

    loss: Loss
    target: str
    draw: int = 0


def at_logits(loss: Loss, scores: Tensor, reference: Tensor | None, labels: Tensor, random: torch.Generator) -> Tensor:
    """(n, vocabulary) gradient of a loss at logits ``scores`` (n, vocabulary), float32 or wider.

    ``reference``: the original's logits, for kl. ``labels`` (n,): the next tokens.
    """
    p = scores.softmax(-1)
    if loss == "kl":
        assert reference is not None
        return p - reference.softmax(-1)
    if loss == "fisher":
        return signed(p, torch.empty(p.shape).bernoulli_(0.5, generator=random).mul_(2).sub_(1).to(p))
    if loss == "sampled":
        labels = torch.multinomial(p.cpu(), 1, generator=random)[:, 0].to(p.device)
    p[torch.arange(len(p), device=p.device), labels] -= 1
    return p


def signed(p: Tensor, signs: Tensor) -> Tensor:
    """√p ∘ ξ − p (√pᵀ ξ) for probabilities and signs ξ (n, vocabulary)."""
    root = p.sqrt().mul_(signs)
    return root - p * root.sum(-1, keepdim=True)


def at_hidden(
    model: Any,
    hidden: Tensor,
    reference: Tensor | None,
    tokens: Tensor,
    rows: list[Row],
    weights: dict[str, Tensor],
    seed: int,
) -> Tensor:
    """(R, T, hidden) gradients of each row's loss at the last block's output ``hidden`` (1, T, hidden).

    ``reference`` (1, T, hidden): the same of the original model. ``tokens`` (T,). ``weights``: target -> (T − 1,) what
    each position counts that predicts a token; random losses count by the root, so that their squares count by it.
    """
    norm, head = norm_of(model), Head.of(model)
    random = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        start = hidden.detach().requires_grad_()
        normed = norm(start)
    other = None if reference is None else norm(reference)[0]
    found = torch.zeros(len(rows), *normed.shape[1:], dtype=normed.dtype, device=normed.device)
    for first in range(0, len(tokens) - 1, _CHUNK):
        where = slice(first, min(first + _CHUNK, len(tokens) - 1))
        part = normed.detach()[0, where].requires_grad_()
        with torch.enable_grad():
            logits = head(part)
        original = None if other is None else head(other[where]).float()
        for number, row in enumerate(rows):
            counts = weights[row.target][where].to(hidden)
            labels = tokens[1:][where].to(hidden.device)
            gradient = at_logits(row.loss, logits.detach().float(), original, labels, random)
            gradient = gradient * (counts.sqrt() if row.loss in ("fisher", "sampled") else counts)[:, None]
            (found[number, where],) = torch.autograd.grad(logits, part, gradient.to(logits), retain_graph=True)
    return torch.cat([torch.autograd.grad(normed, start, one[None], retain_graph=True)[0] for one in found], 0)
