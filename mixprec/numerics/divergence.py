"""How far a model's predictions are from the original's, from the final hidden states and the head of each.

Hidden states are smaller than logits by the vocabulary over the hidden size, and the head makes exactly the same logits
again. So states are kept, and logits exist for a few positions at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from mixprec.core.errors import UserError

#: Positions whose logits exist at once: 256 x 50,000 words x 4 bytes is 50 MB.
CHUNK = 256

#: Next-token logits (n, vocabulary) of final hidden states (n, hidden).
Head = Callable[[Tensor], Tensor]
Columns = TypeVar("Columns", bound=tuple[Tensor, ...])


class TokenFidelity(NamedTuple):
    """One passage of T tokens, for each predicted token t = 1 … T-1, all (T-1,) float64 but the last.

    nll: negative log-likelihood of the token under the evaluated model, in nats. kl: KL(original || evaluated) of
    the next-token distribution, in nats. agree: whether both have the same most likely token.
    """

    nll: Tensor
    kl: Tensor
    agree: Tensor


def fidelity(own: Tensor, head: Head, original: Tensor, original_head: Head, targets: Tensor) -> TokenFidelity:
    """Compare final states (n, hidden) with the ``original``'s; ``targets`` (n,) are the tokens that come next.

    Raises UserError where the two predict vocabularies of different sizes. NaN logits give NaN.
    """
    parts = [
        TokenFidelity(likelihood(log_q, targets[where]), kl(log_p, log_q), log_q.argmax(-1) == log_p.argmax(-1))
        for where, log_p, log_q in _both(own, head, original, original_head)
    ]
    return joined(parts)


def divergence(own: Tensor, head: Head, original: Tensor, original_head: Head) -> Tensor:
    """KL(original || own) (n,) float64 on the CPU, in nats, of final states (n, hidden); as ``fidelity``'s."""
    return torch.cat([kl(log_p, log_q).cpu() for _, log_p, log_q in _both(own, head, original, original_head)])


def log_probabilities(states: Tensor, head: Head) -> Iterator[tuple[slice, Tensor]]:
    """Log-probabilities (m, vocabulary) of the next token, float32; ``states`` (n, hidden), m positions at a time."""
    for start in range(0, max(len(states), 1), CHUNK):
        where = slice(start, min(start + CHUNK, len(states)))
        yield where, head(states[where]).float().log_softmax(-1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) (n,) float64, in nats, of log-probabilities (n, words)."""
    # Rounding can make a KL of (nearly) equal distributions slightly negative.
    return relative_entropy(log_p, log_q).double().clamp(min=0)


def relative_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) (n,) as a loss: in the type of the log-probabilities (n, words), with gradients."""
    found: Tensor = torch.linalg.vecdot(log_p.exp(), log_p - log_q)
    return found


def likelihood(logs: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood (n,) float64 of ``targets`` (n,) under log-probabilities (n, vocabulary)."""
    return -logs.gather(1, targets.to(logs.device)[:, None])[:, 0].double()


def joined(parts: Sequence[Columns]) -> Columns:
    """Named tuples of tensors as one on the CPU, position after position."""
    columns = (torch.cat(list(column)).cpu() for column in zip(*parts, strict=True))
    return type(parts[0])(*columns)


def _both(own: Tensor, head: Head, original: Tensor, original_head: Head) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Positions, and the log-probabilities of original and own there."""
    for where, log_q in log_probabilities(own, head):
        log_p = original_head(original[where].to(own)).float().log_softmax(-1)
        if log_p.shape != log_q.shape:
            raise UserError(
                f"the model predicts {log_q.shape[-1]} tokens, the original {log_p.shape[-1]}; they can't be compared"
            )
        yield where, log_p, log_q
