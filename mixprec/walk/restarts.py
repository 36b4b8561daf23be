"""What a loaded model predicts with some weights changed, by passes that start again in front of the first of them.

The states that enter each block are kept for all passages, so that a change costs the blocks behind it, and the head at
every ``stride``-th predicted token only: at SmolLM2's size the head costs more than the deep half of the body.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mixprec.core.errors import UserError
from mixprec.models.head import Head
from mixprec.models.load import LoadedModel
from mixprec.models.weights import map_in, norm_of, through
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
        self._live, self._tokens, self._decoder = Live(loaded.model), passages, map_in(loaded.model)
        self._original = self.head.fixed()
        self.positions = [torch.arange(n % stride, len(tokens) - 1, stride) for n, tokens in enumerate(passages)]
        with torch.no_grad():
            entering = [block_inputs(loaded.model, tokens[None]) for tokens in passages]
        self._contexts = [each.contexts for each in entering]
        self.states = [[each.hidden] for each in entering]
        self.states = [[*old, *new] for old, new in zip(self.states, self.run(0), strict=True)]
        self.reference = self.final(self.states)

    def first(self, addresses: Collection[str]) -> int:
        """The first block, from 0, that a change of these modules changes; behind the last one without any."""
        behind = self._live.layers
        inside = (self._decoder[address].layer for address in addresses if address != self._decoder.embedding)
        return 0 if self._decoder.embedding in addresses else min((n - 1 for n in inside if n), default=behind)

    def cost(self, addresses: Sequence[str]) -> int:
        """Blocks that a change of these modules runs again."""
        return self._live.layers - self.first(addresses)

    def swap(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put weights (out, in) into the place of the model's, which come back."""
        before: dict[str, Tensor] = {}
        for address, weight in weights.items():
            modules = self._holding(address)
            old = before[address] = modules[0].weight
            new = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight.to(old), requires_grad=False)
            for module in modules:
                module.weight = new
        return before

    def _holding(self, address: str) -> list[Any]:
        """The modules that hold a matrix: one, or embedding and head."""
        if address in self.linears:
            return [self.linears[address]]
        tied = [self._decoder.head] if self._decoder.tied else []
        return [self._live.model.get_submodule(name) for name in (address, *tied)]

    @contextmanager
    def swapped(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """``swap``, and back at the end."""
        before = self.swap(weights)
        try:
            yield
        finally:
            self.swap(before)

    @torch.no_grad()
    def run(self, first: int, keep: bool = True, entering: Sequence[Tensor] = ()) -> list[list[Tensor]]:
        """Per passage the states that leave the blocks from ``first`` on, or unless they are to be kept the last.

        ``entering``: per passage what enters the first one, by default what the model has there.
        """
        found: list[list[Tensor]] = [[] for _ in self.states]

        def visit(index: int, block: nn.Module) -> None:
            for number, states in enumerate(found):
                before = entering[number : number + 1] or self.states[number][index : index + 1]
                hidden = (states or before)[-1]
                if not keep:
                    states.clear()
                states.append(through(block, hidden, self._contexts[number][index]))

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
        found = []
        with self.swapped(weights):
            entering = self._entering() if self._decoder.embedding in weights else ()
            new = self.run(self.first(weights), keep=False, entering=entering)
            final = self.final([[*old[-1:], *states] for old, states in zip(self.states, new, strict=True)])
            for own, reference, tokens, where in zip(final, self.reference, self._tokens, self.positions, strict=True):
                found.append(fidelity(own, self.head, reference, self._original, tokens[where + 1]))
        if any(each.kl.isnan().any() for each in found):
            raise UserError("the model's logits are NaN with a module changed; compute in float32 (model.dtype)")
        return found

    def _entering(self) -> list[Tensor]:
        """Per passage what enters the first block as the embedding is now."""
        return [block_inputs(self._live.model, tokens[None]).hidden for tokens in self._tokens]
