"""Fidelity to the original model, token by token: its distribution against the compressed model's.

The original's final hidden states are kept instead of its logits: they are smaller by the vocabulary over the hidden
size, and its head makes exactly the same logits of them again, a few positions at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mixprec.core.errors import UserError
from mixprec.core.progress import bar
from mixprec.evaluate.passages import Passage
from mixprec.models.head import Head
from mixprec.models.load import LoadedModel

#: Positions whose logits exist at once: 256 x 50,000 words x 4 bytes is 50 MB.
CHUNK = 256


class TokenFidelity(NamedTuple):
    """One passage of T tokens, for each predicted token t = 1 … T-1, all (T-1,) float64 but the last.

    nll: negative log-likelihood of the token under the evaluated model, in nats. kl: KL(original || evaluated) of
    the next-token distribution, in nats. agree: whether both have the same most likely token.
    """

    nll: Tensor
    kl: Tensor
    agree: Tensor


def hidden_states(loaded: LoadedModel, passages: Sequence[Passage], what: str) -> Iterator[Tensor]:
    """Final hidden states (T, hidden) of every passage, after the last norm, one by one.

    Raises UserError for tokens that the model doesn't know.
    """
    embedding = loaded.model.get_input_embeddings()
    device = embedding.weight.device
    with bar(what, sum(len(p.tokens) for p in passages), "tokens") as advance:
        for passage in passages:
            if passage.tokens.max() >= embedding.num_embeddings:
                raise UserError(
                    f"{what}: token {int(passage.tokens.max())} is beyond the model's {embedding.num_embeddings}; "
                    "its tokenizer is not the original's"
                )
            with torch.no_grad():
                out = loaded.model.model(input_ids=passage.tokens[None].to(device), use_cache=False)
            yield out.last_hidden_state[0]
            advance(len(passage.tokens))


@torch.no_grad()
def compare(
    passages: Sequence[Passage], hidden: Iterable[Tensor], own_head: Head, original: Iterable[Tensor], reference: Head
) -> list[TokenFidelity]:
    """Measure a model by its hidden states and head against the ``original``'s states and ``reference`` head.

    Raises UserError where the models' vocabularies differ, or logits are NaN (broken weights, overflow in 16 bits).
    """
    results = []
    for passage, own, other in zip(passages, hidden, original, strict=True):
        result = _passage(own, own_head, other, reference, passage.tokens)
        if result.kl.isnan().any():
            raise UserError("the model's logits are NaN; its weights overflow or are broken")
        results.append(result)
    return results


def _passage(hidden: Tensor, own_head: Head, original: Tensor, reference_head: Head, tokens: Tensor) -> TokenFidelity:
    parts = []
    for start in range(0, len(tokens) - 1, CHUNK):
        # The last position predicts nothing that is known.
        where = slice(start, min(start + CHUNK, len(tokens) - 1))
        own = own_head(hidden[where]).float().log_softmax(-1)
        ref = reference_head(original[where].to(hidden)).float().log_softmax(-1)
        if own.shape != ref.shape:
            raise UserError(
                f"the model predicts {own.shape[-1]} tokens, the original {ref.shape[-1]}; they can't be compared"
            )
        targets = tokens[1:][where].to(own.device)
        parts.append(
            TokenFidelity(
                nll=-own.gather(1, targets[:, None])[:, 0].double(),
                # Rounding can make a KL of (nearly) equal distributions slightly negative.
                kl=torch.linalg.vecdot(ref.exp(), ref - own).double().clamp(min=0),
                agree=own.argmax(-1) == ref.argmax(-1),
            )
        )
    return TokenFidelity(*(torch.cat(list(columns)).cpu() for columns in zip(*parts, strict=True)))
