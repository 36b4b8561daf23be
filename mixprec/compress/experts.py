"""The routed experts of a block: one Hessian for each from the tokens that the router sent there.

The samples come as far as the experts' module once, whatever the number of experts. There each expert is solved for its
own tokens: first what reads the block's states (gate and up), then what reads what these make of them (down). Experts
don't see one another, so that an expert has the inputs that it will have in the compressed model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from mixprec.compress.options import ExpertOptions
from mixprec.core import processes
from mixprec.models.decoder import Group
from mixprec.models.experts import Experts
from mixprec.numerics.products import Products, multiplying
from mixprec.numerics.statistics import InputStatistics
from mixprec.walk.samples import Gathering, Samples, Seen

#: Tokens whose inputs are added to sums at once.
_ROWS = 16_384


class Sent(NamedTuple):
    """What came to a layer's experts with a micro-batch: ``hidden`` (t, H), the experts ``chosen`` (t, k), the tokens'
    ``counts`` (t,) in sums, None where all count 1, and what the uncompressed model has there, ``full`` (t, H), where
    somebody looks at it."""

    hidden: Tensor
    chosen: Tensor
    counts: Tensor | None = None
    full: Tensor | None = None

    @classmethod
    def of(cls, arguments: Sequence[Tensor], counts: Tensor | None, full: Tensor | None = None) -> Sent:
        """``arguments``: of the experts' module. ``counts`` (n, T, 1), ``full``: as the micro-batch has them."""
        hidden, chosen, *_ = arguments
        flat = None if full is None else full.reshape(hidden.shape)
        return cls(hidden, chosen, None if counts is None else counts.flatten(), flat)


class Routed:
    """The tokens of a layer's experts while they are being solved."""

    def __init__(
        self,
        block: nn.Module,
        path: str,
        sent: Sequence[Sent],
        options: ExpertOptions,
        products: Products = "model",
        shared: bool = False,
    ) -> None:
        """``path``: the experts' module within ``block``. ``sent``: of all micro-batches. ``products``: the type in
        which experts and sums multiply. ``shared``: other processes have other samples, and all that is told is of all
        of them."""
        self._experts = cast(Experts, block.get_submodule(path))
        self._sent, self._options, self._products = sent, options, products
        width = len(self._experts)
        #: (E,) tokens that the router sent to each.
        self.counts: Tensor = torch.stack(
            [torch.bincount(each.chosen.flatten(), minlength=width) for each in sent]
        ).sum(0)
        self._shared = shared
        if shared:
            processes.sum_up([self.counts])
        self._full: dict[int, list[Tensor]] = {}

    def _gated(self, expert: int, hidden: Tensor) -> Tensor:
        with multiplying(self._products, hidden.device):
            return self._experts.gated(expert, hidden)

    def tokens(self, expert: int) -> int:
        """How many tokens the router sent to an expert."""
        return int(self.counts[expert])

    def pooled(self, expert: int) -> bool:
        """Whether an expert is solved for all of the layer's tokens, since too few were sent to it."""
        options = self._options
        return options.tokens == "all" or (options.tokens == "pooled" and self.tokens(expert) < options.least)

    def remember_full(self, expert: int) -> None:
        """Keep what the expert's down projection reads in the uncompressed model, before gate and up change."""
        self._full[expert] = [self._gated(expert, each.full) for each in self._given(expert) if each.full is not None]

    def statistics(self, expert: int, group: Group, *, drift: bool, pooled: bool = False) -> InputStatistics | None:
        """Of the inputs of one of the expert's groups; None where no token that counts was sent to it.

        ``drift``: with what the uncompressed model has there. ``pooled``: of all tokens, whatever the options.
        """
        behind = group[0].kind == "down"
        device = self._sent[0].hidden.device
        sums = Gathering(
            group[0].in_features,
            _ROWS,
            drift=drift,
            device=device,
            products=self._products,
            shared=self._shared,
        )
        full = iter(self._full.pop(expert, ())) if behind else None
        seen = 0.0
        for each in self._given(expert, pooled):
            inputs = self._gated(expert, each.hidden) if behind else each.hidden
            other = (next(full) if full is not None else each.full) if drift else None
            counts = None if each.counts is None else each.counts[:, None, None]
            seen += float(len(inputs) if counts is None else counts.sum())
            if len(inputs):
                sums.add(Seen(inputs[:, None], counts, None if other is None else other[:, None]))
        if self._shared:
            seen = processes.add_up([], seen)
        return sums.results()[0] if seen else None

    def known(self, group: Group, *, everyone: bool = False) -> InputStatistics:
        """Of the inputs of an expert's group in the block as it is; of all the layer's tokens where none came to it, or
        ``everyone`` is asked for."""
        expert = group[0].expert
        assert expert is not None
        found = None if everyone else self.statistics(expert, group, drift=False)
        found = found or self.statistics(expert, group, drift=False, pooled=True)
        assert found is not None  # calibration data has tokens that count
        return found

    def _given(self, expert: int, pooled: bool = False) -> Iterator[Sent]:
        """The expert's tokens, micro-batch by micro-batch."""
        for each in self._sent:
            if pooled or self.pooled(expert):
                yield each
                continue
            where = (each.chosen == expert).any(-1).nonzero()[:, 0]
            counts = None if each.counts is None else each.counts[where]
            yield Sent(each.hidden[where], each.chosen[where], counts, None if each.full is None else each.full[where])


def sent_to(samples: Samples, index: int, block: nn.Module, path: str) -> list[Sent]:
    """What comes to the experts at ``path`` of a block with all samples, which stay in front of the block."""
    experts = [block.get_submodule(path)]
    return [
        Sent.of(samples.arguments(number, index, block, experts), samples.weighed(number))
        for number in range(len(samples.batches))
    ]


def sets_of(groups: Sequence[Group]) -> list[tuple[Group, ...]]:
    """Groups that samples reach together: all of a layer's routed experts, each other group by itself."""
    found: list[tuple[Group, ...]] = []
    for group in groups:
        if group.routed is not None and found and found[-1][0].routed == group.routed:
            found[-1] = (*found[-1], group)
        else:
            found.append((group,))
    return found


def by_expert(groups: Sequence[Group]) -> Mapping[int, list[Group]]:
    """Number of a routed expert -> its groups, in the order in which they work."""
    found: dict[int, list[Group]] = {}
    for group in groups:
        number = group[0].expert
        assert number is not None  # sets_of puts routed groups together
        found.setdefault(number, []).append(group)
    return found
