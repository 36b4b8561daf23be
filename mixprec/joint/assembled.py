"""A model put together from cached candidates: its KL to the original under any plan, without compressing again.

The candidates were solved on the original model's inputs, so that an assembled plan is an approximation of what the
method makes of it, whose modules are solved behind compressed ones; the plan that is chosen is compressed for real.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mixprec.compress.candidatefiles import Candidates
from mixprec.core.errors import UserError
from mixprec.models.load import LoadedModel
from mixprec.numerics.divergence import divergence
from mixprec.plan.sensitivity import Choice
from mixprec.sensitivity.passages import Scored
from mixprec.walk.restarts import Restarts


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
        self._restarts = Restarts(loaded, [each.tokens for each in passages], stride)
        self._originals = {address: linear.weight for address, linear in self._restarts.linears.items()}
        self._candidates, positions = candidates, self._restarts.positions
        totals = {
            target: sum(float(p.weights[target][w].sum()) for p, w in zip(passages, positions, strict=True))
            for target in weights
        }
        empty = [target for target, total in totals.items() if total == 0]
        if empty:
            raise UserError(f"plan.budget.weights: no token of {', '.join(empty)} in the passages; take more of them")
        every = sum(float(len(where)) for where in positions)
        # Each target's KL is a mean over its own tokens; together they count as many tokens as there are.
        norm = every / sum(weights.values())
        self._counts = [
            sum(
                (weights[t] * norm / totals[t] * each.weights[t][where] for t in weights),
                start=torch.zeros(len(where)),
            )
            for each, where in zip(passages, positions, strict=True)
        ]
        #: The last change that was tried, and the states behind it: most changes that are put were tried before.
        self._tried: tuple[dict[str, Choice], list[list[Tensor]]] | None = None

    def put(self, choices: Mapping[str, Choice]) -> None:
        """Make ``choices`` (address -> choice, of any modules) part of the plan, which at first keeps everything."""
        self._restarts.swap(self._weights(choices))
        first = self._restarts.first(choices)
        new = self._tried[1] if self._tried and self._tried[0] == choices else self._restarts.run(first)
        self._restarts.states = self._behind(first, new)
        self._tried = None

    def close(self) -> None:
        """Give the model its own weights back."""
        self._restarts.swap(self._originals)

    def now(self) -> Kl:
        """The plan's KL."""
        return self._kl(self._restarts.states)

    def try_out(self, choices: Mapping[str, Choice]) -> Kl:
        """The KL that ``choices`` in the place of the plan's would have; the plan stays."""
        first = self._restarts.first(choices)
        with self._restarts.swapped(self._weights(choices)):
            states = self._restarts.run(first)
        self._tried = (dict(choices), states)
        return self._kl(self._behind(first, states))

    def _weights(self, choices: Mapping[str, Choice]) -> dict[str, Tensor]:
        return {
            address: self._candidates.weight(address, str(choice)) if choice.changes else self._originals[address]
            for address, choice in choices.items()
        }

    def _behind(self, first: int, new: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
        """All states, where those that leave the blocks from ``first`` on are ``new``."""
        return [[*old[: first + 1], *states] for old, states in zip(self._restarts.states, new, strict=True)]

    @torch.no_grad()
    def _kl(self, states: Sequence[Sequence[Tensor]]) -> Kl:
        restarts, head = self._restarts, self._restarts.head
        sums = []
        for own, original, counts in zip(restarts.final(states), restarts.reference, self._counts, strict=True):
            sums.append(float((divergence(own, head, original, head) * counts).sum()))
        found = Kl(
            torch.tensor(sums, dtype=torch.float64),
            torch.tensor([float(each.sum()) for each in self._counts], dtype=torch.float64),
        )
        if not torch.isfinite(found.sums).all():
            raise UserError("the assembled model's logits are NaN or infinite; compute in float32 (model.dtype)")
        return found
