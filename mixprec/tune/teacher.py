"""What the original predicts on the samples: its final hidden states, and its head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixprec.core.errors import UserError
from mixprec.core.progress import bar
from mixprec.models.head import Head
from mixprec.models.load import LoadedModel
from mixprec.models.weights import body_of
from mixprec.walk.states import States


class Teacher:
    """``states``: number of a sample -> (T, hidden) behind the last norm; ``head`` makes logits of them."""

    def __init__(self, original: LoadedModel, samples: Sequence[Tensor], states: States) -> None:
        """The original may go afterwards. Raises UserError where its states are NaN or infinite."""
        self.states, self.head = states, Head.of(original.model).apart()
        with bar("original", len(samples), "samples") as advance:
            for number, tokens in enumerate(samples):
                states[number] = final_states(original.model, tokens)
                if not torch.isfinite(states[number]).all():
                    raise UserError("tune: the original's states are NaN or infinite; compute in float32 (tune.dtype)")
                advance(1)


@torch.no_grad()
def final_states(model: object, tokens: Tensor) -> Tensor:
    """(T, hidden) behind the last norm for ``tokens`` (T,)."""
    return forward(model, tokens[None])[0]


def forward(model: object, tokens: Tensor) -> Tensor:
    """(n, T, hidden) behind the last norm for ``tokens`` (n, T)."""
    found: Tensor = body_of(model)(input_ids=tokens.to(model.device), use_cache=False).last_hidden_state  # type: ignore[attr-defined]
    return found
