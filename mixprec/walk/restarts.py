"""What a loaded model predicts with some weights changed, by passes that start again in front of the first of them.

The states that enter each block are kept for all passages, so that a change costs the blocks behind it, and the head at
every ``stride``-th predicted token only: at SmolLM2's size the head costs more than the deep half of the body.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mixprec.core.errors import UserError
from mixprec.models.head import Head
from mixprec.models.labels import parse_address
from mixprec.models.load import LoadedModel
from mixprec.models.weights import norm_of
from mixprec.numerics.divergence import TokenFidelity, fidelity
from mixprec.walk.blocks import Live, block_inputs
from mixprec.walk.walk import walk


class Restarts:
    """Passages in front of every block of a model.

    ``positions``: per passage those (n,) whose predictions are compared: position t predicts token t + 1. ``states``:
    per passage what enters each block, and what leaves the last one. ``reference``: the original model's final states
    (n, hidden) at the positions.
    """

    def __init__(self, loaded: LoadedModel, passages: Sequence[Tensor], stride: int = 1) -> None:
        self.linears, self.head = loaded.linears, Head.of(loaded.model)
        self._live, self._tokens = Live(loaded.model), passages
        self.positions = [torch.arange(n % stride, len(tokens) - 1, stride) for n, tokens in enumerate(passages)]
        with torch.no_grad():
            entering = [block_inputs(loaded.model, tokens[None]) for tokens in passages]
        self._contexts = [each.contexts for each in entering]
        self.states = [[each.hidden] for each in entering]
        self.states = [[*old, *new] for old, new in zip(self.states, self.run(0), strict=True)]
        self.reference = self.final(self.states)

    def first(self, addresses: Iterable[str]) -> int:
        """The first block, from 0, that a change of these modules changes; behind the last one without any."""
        layers = (parse_address(address)[0] or 1 for address in addresses)
        return min(layers, default=self._live.layers + 1) - 1

    def cost(self, addresses: Sequence[str]) -> int:
        """Blocks that a change of these modules runs again."""
        return self._live.layers - self.first(addresses)

    def swap(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put weights (out, in) into the place of the model's, which come back."""
        before: dict[str, Tensor] = {}
        for address, weight in weights.items():
            linear = self.linears[address]
            before[address] = linear.weight
            own = isinstance(weight, nn.Parameter)
            linear.weight = weight if own else nn.Parameter(weight.to(linear.weight), requires_grad=False)
        return before

    @contextmanager
    def swapped(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """``swap``, and back at the end."""
        before = self.swap(weights)
        try:
            yield
        finally:
            self.swap(before)

    @torch.no_grad()
    def run(self, first: int, keep: bool = True) -> list[list[Tensor]]:
        """Per passage the states that leave the blocks from ``first`` on, or unless they are to be kept the last."""
        found: list[list[Tensor]] = [[] for _ in self.states]

        def visit(index: int, block: nn.Module) -> None:
            for number, states in enumerate(found):
                hidden = states[-1] if states else self.states[number][index]
                if not keep:
                    states.clear()
                states.append(block(hidden, **self._contexts[number][index]))

        walk(self._live, range(first, self._live.layers), visit)
        return found

    @torch.no_grad()
    def final(self, states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Final states (n, hidden) at the positions, of ``states`` per passage whose last ones left the last block."""
        pairs, norm = zip(states, self.positions, strict=True), norm_of(self._live.model)
        return [norm(each[-1][:, where])[0] for each, where in pairs]

    @torch.no_grad()
    def measure(self, weights: Mapping[str, Tensor]) -> list[TokenFidelity]:
        """Per passage the fidelity at its ``positions`` with these weights (out, in) in the place of the model's.

        Without any the result is that of the model itself, KL exactly 0. Raises UserError where logits are NaN.
        """
        with self.swapped(weights):
            new = self.run(self.first(weights), keep=False)
        final = self.final([[*old[-1:], *states] for old, states in zip(self.states, new, strict=True)])
        found = []
        for own, reference, tokens, where in zip(final, self.reference, self._tokens, self.positions, strict=True):
            found.append(fidelity(own, self.head, reference, self.head, tokens[where + 1]))
            if found[-1].kl.isnan().any():
                raise UserError("the model's logits are NaN with a module changed; compute in float32 (model.dtype)")
        return found
