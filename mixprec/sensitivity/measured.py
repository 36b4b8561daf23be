"""Measured damage: what the model predicts with some modules changed, forwards restarted in front of the first of them.

The hidden states that enter each block are kept for all passages, so that a change costs the blocks behind it, and the
head at every ``stride``-th predicted token only: at SmolLM2's size the head costs more than the deep half of the body.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mixprec import modules
from mixprec.core.errors import UserError
from mixprec.models.head import Head
from mixprec.models.load import LoadedModel
from mixprec.numerics.divergence import TokenFidelity, fidelity
from mixprec.walk import blocks


class Restarts:
    """The original model's states on some passages; ``measure`` says what a change makes of its predictions."""

    def __init__(self, loaded: LoadedModel, passages: Sequence[Tensor], stride: int = 1) -> None:
        self._model, self._head, self._linears = loaded.model, Head.of(loaded.model), loaded.linears
        self._tokens = passages
        #: Per passage the positions (n,) whose predictions are compared: position t predicts token t + 1.
        self.positions = [torch.arange(n % stride, len(tokens) - 1, stride) for n, tokens in enumerate(passages)]
        self._contexts: list[list[dict[str, Any]]] = []
        self._states: list[list[Tensor]] = []
        self._reference: list[Tensor] = []
        with torch.no_grad():
            for tokens, scored in zip(passages, self.positions, strict=True):
                entering = blocks.block_inputs(self._model, tokens[None])
                states = [entering.hidden]
                for block, context in zip(self._model.model.layers, entering.contexts, strict=True):
                    states.append(block(states[-1], **context))
                self._reference.append(self._final(states.pop(), scored))
                self._contexts.append(entering.contexts)
                self._states.append(states)

    @torch.no_grad()
    def measure(self, weights: Mapping[str, Tensor]) -> list[TokenFidelity]:
        """Per passage the fidelity at its ``positions`` with these weights (out, in) in the place of the model's.

        Without any the result is that of the model itself, KL exactly 0. Raises UserError where logits are NaN.
        """
        first = min((modules.parse_address(address)[0] or 1 for address in weights), default=len(self._states[0])) - 1
        with self._swapped(weights):
            return [self._passage(number, first) for number in range(len(self._states))]

    def cost(self, addresses: Sequence[str]) -> int:
        """Blocks that a change of these modules runs again."""
        first = min(modules.parse_address(address)[0] or 1 for address in addresses)
        return len(self._states[0]) - first + 1

    def _final(self, hidden: Tensor, where: Tensor) -> Tensor:
        found: Tensor = self._model.model.norm(hidden[:, where])[0]
        return found

    def _passage(self, number: int, first: int) -> TokenFidelity:
        hidden = self._states[number][first]
        for index in range(first, len(self._states[number])):
            hidden = self._model.model.layers[index](hidden, **self._contexts[number][index])
        scored = self.positions[number]
        final, reference = self._final(hidden, scored), self._reference[number]
        result = fidelity(final, self._head, reference, self._head, self._tokens[number][scored + 1])
        if result.kl.isnan().any():
            raise UserError("the model's logits are NaN with a module changed; compute in float32 (model.dtype)")
        return result

    @contextmanager
    def _swapped(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        kept: dict[str, Any] = {}
        try:
            for address, weight in weights.items():
                linear = self._linears[address]
                kept[address] = linear.weight
                linear.weight = nn.Parameter(weight.to(linear.weight), requires_grad=False)
            yield
        finally:
            for address, parameter in kept.items():
                self._linears[address].weight = parameter
