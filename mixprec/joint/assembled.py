"""A model put together from cached candidates: its KL to the original under any plan, without compressing again.

The candidates were solved on the original model's inputs, so that an assembled plan is an approximation of what the
method makes of it, whose modules are solved behind compressed ones; the plan that is chosen is compressed for real.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixprec import modules
from mixprec.compress.candidates import Candidates
from mixprec.core.errors import UserError
from mixprec.models.head import Head
from mixprec.models.load import LoadedModel
from mixprec.numerics.divergence import divergence
from mixprec.plan.sensitivity import Choice
from mixprec.sensitivity.passages import Scored
from mixprec.walk import blocks


class Kl(NamedTuple):
    """``sums`` (P,) of weighted KL over each passage's tokens, in nats, and the ``counts`` (P,) of the weights."""

    sums: Tensor
    counts: Tensor

    @property
    def mean(self) -> float:
        """Per token."""
        return float(self.sums.sum() / self.counts.sum())

    def better_by(self, other: Kl) -> tuple[float, float]:
        """How much lower this mean is than ``other``'s over the same passages, and the standard error of that."""
        gain = (other.sums - self.sums) / self.counts.sum()
        count = len(gain)
        spread = float((gain - gain.mean()).square().sum()) * count / max(count - 1, 1)
        return float(gain.sum()), spread**0.5


class Assembled:
    """The original model with a plan's candidates in it; states in front of every block are kept for that plan.

    ``weights``: target -> what its KL counts in the sum. Passages whose targets have no token count 0.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        candidates: Candidates,
        passages: Sequence[Scored],
        weights: Mapping[str, float],
        stride: int = 1,
    ) -> None:
        self._model, self._head, self._linears = loaded.model, Head.of(loaded.model), loaded.linears
        self._originals = {address: linear.weight for address, linear in self._linears.items()}
        self._candidates = candidates
        self._positions = [torch.arange(n % stride, len(each.tokens) - 1, stride) for n, each in enumerate(passages)]
        totals = {
            target: sum(float(p.weights[target][w].sum()) for p, w in zip(passages, self._positions, strict=True))
            for target in weights
        }
        empty = [target for target, total in totals.items() if total == 0]
        if empty:
            raise UserError(f"plan.budget.weights: no token of {', '.join(empty)} in the passages; take more of them")
        every = sum(float(len(where)) for where in self._positions)
        # Each target's KL is a mean over its own tokens; together they count as many tokens as there are.
        norm = every / sum(weights.values())
        self._counts = [
            sum(
                (weights[t] * norm / totals[t] * each.weights[t][where] for t in weights),
                start=torch.zeros(len(where)),
            )
            for each, where in zip(passages, self._positions, strict=True)
        ]
        self._contexts: list[list[dict[str, Any]]] = []
        self._entering: list[Tensor] = []
        for each in passages:
            entered = blocks.block_inputs(self._model, each.tokens[None])
            self._contexts.append(entered.contexts)
            self._entering.append(entered.hidden)
        self._states = self._run(0)
        self._reference = self._final(self._states)
        #: The last change that was tried, and the states behind it: most changes that are put were tried before.
        self._tried: tuple[dict[str, Choice], int, list[list[Tensor]]] | None = None

    def put(self, choices: Mapping[str, Choice]) -> None:
        """Make ``choices`` (address -> choice, of any modules) part of the plan, which at first keeps everything."""
        first = self._swap(choices)
        new = self._tried[2] if self._tried and self._tried[0] == choices else self._run(first)
        self._states = [old[:first] + states for old, states in zip(self._states, new, strict=True)]
        self._tried = None

    def now(self) -> Kl:
        """The plan's KL."""
        return self._kl(self._final(self._states))

    def try_out(self, choices: Mapping[str, Choice]) -> Kl:
        """The KL that ``choices`` in the place of the plan's would have; the plan stays."""
        kept = {address: self._linears[address].weight for address in choices}
        first = self._swap(choices)
        try:
            states = self._run(first)
        finally:
            for address, weight in kept.items():
                self._linears[address].weight = weight
        self._tried = (dict(choices), first, states)
        before = [old[:first] for old in self._states]
        return self._kl(self._final([old + new for old, new in zip(before, states, strict=True)]))

    def _swap(self, choices: Mapping[str, Choice]) -> int:
        """Put the weights in; the first block that changes, from 0."""
        for address, choice in choices.items():
            original = self._originals[address]
            weight = original
            if choice.changes:
                found = self._candidates.weight(address, str(choice)).to(original)
                weight = nn.Parameter(found, requires_grad=False)
            self._linears[address].weight = weight
        layers = [modules.parse_address(address)[0] or 1 for address in choices]
        return min(layers, default=self._model.config.num_hidden_layers) - 1

    @torch.no_grad()
    def _run(self, first: int) -> list[list[Tensor]]:
        """Per passage the states that leave the blocks from ``first`` on; states[i] enters block i + 1."""
        found = []
        for number, contexts in enumerate(self._contexts):
            hidden = self._entering[number] if first == 0 else self._states[number][first - 1]
            states = []
            for index in range(first, len(contexts)):
                hidden = self._model.model.layers[index](hidden, **contexts[index])
                states.append(hidden)
            found.append(states)
        return found

    @torch.no_grad()
    def _final(self, states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        pairs = zip(states, self._positions, strict=True)
        return [self._model.model.norm(each[-1][:, where])[0] for each, where in pairs]

    @torch.no_grad()
    def _kl(self, final: Sequence[Tensor]) -> Kl:
        sums = []
        for own, original, counts in zip(final, self._reference, self._counts, strict=True):
            sums.append(float((divergence(own, self._head, original, self._head) * counts).sum()))
        found = Kl(
            torch.tensor(sums, dtype=torch.float64),
            torch.tensor([float(each.sum()) for each in self._counts], dtype=torch.float64),
        )
        if not torch.isfinite(found.sums).all():
            raise UserError("the assembled model's logits are NaN or infinite; compute in float32 (model.dtype)")
        return found
