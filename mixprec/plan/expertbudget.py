"""A budget that may drop experts: how many of each layer, and what the rest gets.

Layers drop as many, so the number decides, and which go in each layer: those whose loss damages least. For every number
the rest of the budget is a knapsack of its own; the best sum of both wins.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder
from mixprec.plan.dropping import groups_of, least
from mixprec.plan.sensitivity import DROPPED, Sensitivity


class Dropping(NamedTuple):
    """``dropped``: addresses of the linears of experts that go; ``damage``: of their going."""

    dropped: frozenset[str] = frozenset()
    damage: float = 0.0


def droppings(inventory: Decoder, pinned: Collection[str], table: Sensitivity | None = None) -> Iterator[Dropping]:
    """What may be dropped: nothing, then one expert of each group that a router chooses among, then two, and so on.

    ``pinned``: addresses of linears that stay whatever the scores. ``table``: of the damage that decides who goes;
    None: in the model's order, for sizes, which are the same whoever goes.
    Raises UserError for a model without experts, and where the table has no damage of an expert's going.
    """
    groups = [(layer, members) for layer in inventory.experts for members in groups_of(layer, inventory)]
    if not groups:
        raise UserError("plan.budget.candidates: drop: this model has no routed experts; leave drop out")
    order = [_ranked(layer, members, inventory, pinned, table) for layer, members in groups]
    may_go = min(len(members) for _, members in groups) - least(inventory) // inventory.expert_groups
    for count in range(min(may_go, *map(len, order)) + 1):
        gone = [expert for ranked in order for expert in ranked[:count]]
        addresses = frozenset(address for each in gone for address in each.addresses)
        yield Dropping(addresses, math.fsum(each.damage for each in gone))


class _Expert(NamedTuple):
    damage: float
    number: int
    addresses: tuple[str, ...]


def _ranked(
    layer: int, members: Sequence[int], inventory: Decoder, pinned: Collection[str], table: Sensitivity | None
) -> list[_Expert]:
    """Those of a group's experts that may go, the one that is missed least first; of equal ones the first."""
    parts: dict[int, list[str]] = {}
    for each in next(block for block in inventory.blocks if block.layer == layer).linears:
        if each.expert is not None and each.expert in members:
            parts.setdefault(each.expert, []).append(each.address)
    found = [
        _Expert(0.0 if table is None else _damage(addresses, table), number, tuple(addresses))
        for number, addresses in parts.items()
        if not any(address in pinned for address in addresses)
    ]
    return sorted(found)


def _damage(addresses: Sequence[str], table: Sensitivity) -> float:
    """Of an expert's going: where the table has it for several of its linears, their sum."""
    told = [row[str(DROPPED)] for address in addresses if str(DROPPED) in (row := table.scores.get(address, {}))]
    if not told:
        raise UserError(
            f"the scores ({table.scorer}, {table.target}) have no damage of dropping the expert of {addresses[0]}; "
            "score it: sensitivity: {formats: [drop, …]}"
        )
    return table.total(told)
