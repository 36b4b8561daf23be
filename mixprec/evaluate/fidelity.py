"""Fidelity to the original model, token by token: its distribution against the compressed model's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from mixprec.core.errors import UserError
from mixprec.core.progress import bar
from mixprec.evaluate.passages import Passage
from mixprec.models.head import Head
from mixprec.models.load import LoadedModel
from mixprec.models.weights import body_of
from mixprec.numerics import divergence
from mixprec.numerics.divergence import TokenFidelity


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
                out = body_of(loaded.model)(input_ids=passage.tokens[None].to(device), use_cache=False)
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
        # The last position predicts nothing that is known.
        result = divergence.fidelity(own[:-1], own_head, other[:-1], reference, passage.tokens[1:])
        if result.kl.isnan().any():
            raise UserError("the model's logits are NaN; its weights overflow or are broken")
        results.append(result)
    return results
