"""The curve of size against damage: one budget after another, each solved exactly."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder
from mixprec.plan import bits
from mixprec.plan.budget import as_plan, budget_plan, pinned_choices
from mixprec.plan.budgetspec import MEASURES, BudgetSpec
from mixprec.plan.methods import Method
from mixprec.plan.schema import Plan
from mixprec.plan.sensitivity import Choice, Sensitivity


class Point(NamedTuple):
    """A plan on the curve, or a candidate for all modules. ``damage``: as the scores predict it, in their unit."""

    name: str
    size: float
    effective_bits: float
    bytes: int
    damage: float
    formats: dict[str, int]
    plan: Plan


def sizes(first: float, last: float, step: float) -> list[float]:
    """From ``first`` to ``last``, both included, in multiples of ``step``.

    Raises UserError for a range that holds nothing.
    """
    if not (0 < first <= last and step > 0):
        raise UserError(f"pareto: from {first:g} to {last:g} in steps of {step:g}: nothing lies there")
    return [round(first + step * number, 6) for number in range(math.floor((last - first) / step + 1e-9) + 1)]


def at(spec: BudgetSpec, size: float) -> BudgetSpec:
    """``spec`` with another size in effective bits, which are those of the blocks alone."""
    return spec.model_copy(update={**dict.fromkeys(MEASURES), "effective_bits": size, "outside": ()})


def curve(
    spec: BudgetSpec, inventory: Decoder, model: str, method: Method, table: Sensitivity, wanted: Sequence[float]
) -> list[Point]:
    """A point for each of ``wanted`` effective bits that plans of ``spec``'s candidates can have.

    Raises UserError where none can, and as budget_plan does.
    """
    points, problem = [], None
    for size in wanted:
        try:
            plan = budget_plan(at(spec, size), inventory, model, method, table)
        except UserError as found:
            problem = found  # sizes beyond what the candidates reach are left out
            continue
        points.append(_point(f"{size:g}", size, plan, inventory, table))
    if not points:
        raise problem or UserError("pareto: no sizes")
    return points


def uniform(spec: BudgetSpec, inventory: Decoder, model: str, method: Method, table: Sensitivity) -> list[Point]:
    """A point for each candidate that is given to all modules which aren't pinned."""
    pinned = pinned_choices(spec, inventory)
    points = []
    for choice in spec.candidates:
        choices = {module.address: pinned.get(module.address, choice) for module in inventory.linears}
        plan = as_plan(choices, spec, inventory, model, method, why=f"all {choice}")
        points.append(_point(str(choice), bits.account(plan, inventory).effective_bits, plan, inventory, table))
    return sorted(points, key=lambda point: point.effective_bits)


def _point(name: str, size: float, plan: Plan, inventory: Decoder, table: Sensitivity) -> Point:
    account = bits.account(plan, inventory)
    damage = math.fsum(
        table.damage(address, Choice(format=found.format, sparsity=found.sparsity))
        for address, found in plan.modules.items()
        if inventory[address].layer  # what is pinned outside the blocks is the same in all points
    )
    return Point(name, size, account.effective_bits, account.packed_bytes, damage, counted(plan), plan)


def counted(plan: Plan) -> dict[str, int]:
    """How many modules have each format, by the formats' names: small ones first."""
    return dict(sorted(Counter(str(found.format) for found in plan.modules.values()).items()))
