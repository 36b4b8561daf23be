"""What lies outside the blocks is compressed as any linear is: the embedding in front of them, the head behind them.

A head's inputs are the final states behind the norm. An embedding's inputs are tokens, each of which is a row: no
column can make up for another, so methods that can't do without inputs get second moments of the identity, and all
columns weigh the same. A matrix that is both is solved as a head, behind blocks that were calibrated on its own values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from mixprec.models.decoder import Decoder, Linear
from mixprec.numerics.statistics import InputStatistics
from mixprec.plan.methods import Method, needing_inputs, using_inputs, wanting_original_states
from mixprec.plan.schema import Plan
from mixprec.walk.samples import FULL, OWN, Samples, Seen


class Around(NamedTuple):
    """The matrices outside the blocks that change, by when they are solved."""

    before: tuple[Linear, ...]
    behind: tuple[Linear, ...]

    @property
    def all(self) -> tuple[Linear, ...]:
        """All of them."""
        return (*self.before, *self.behind)


def around(plan: Plan, decoder: Decoder, *, calibrated: bool) -> Around:
    """What ``plan`` changes outside the blocks; without calibration data nothing has to wait for it."""
    changing = [linear for linear in decoder.outside if linear.address in plan.changed]
    behind = tuple(
        linear
        for linear in changing
        if linear is decoder.outside[-1] and calibrated and using_inputs([plan.treatments[linear.address].method])
    )
    return Around(tuple(linear for linear in changing if linear not in behind), behind)


def final_inputs(samples: Samples, norm: nn.Module, method: Method) -> InputStatistics:
    """Of what the head gets from ``samples`` behind the last block, as ``method`` asks for it."""
    drift, weight = bool(wanting_original_states([method])), next(norm.parameters())
    sums = samples.gathering(len(weight), drift=drift, device=weight.device)
    for number in range(len(samples.batches)):
        full = norm(samples.states[FULL, number]) if drift else None
        sums.add(Seen(norm(samples.states[OWN, number]), samples.weighed(number), full))
    return sums.results()[0]


def token_inputs(width: int, method: Method, device: torch.device | str) -> InputStatistics | None:
    """What an embedding's columns say of one another, which is nothing; None for methods that do without inputs."""
    if not needing_inputs([method]):
        return None
    drift = torch.zeros(width, width, device=device) if wanting_original_states([method]) else None
    return InputStatistics(torch.eye(width, device=device), torch.ones(width, device=device), 1, drift)
