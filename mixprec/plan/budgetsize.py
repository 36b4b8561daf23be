"""The sizes of budgets: what a module adds, and limits from a recipe's number to whole units and back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Container, Sequence
from fractions import Fraction

from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder, Linear
from mixprec.numerics.formats import WORD
from mixprec.plan import bits
from mixprec.plan.budgetspec import BudgetSpec
from mixprec.plan.sensitivity import DROPPED, Choice


def size_of(choice: Choice, module: Linear, measure: str) -> int:
    """What a module in ``choice`` adds to a plan's size: bits, packed bytes, or weights that are not zero. Nothing,
    where only the blocks' linears count."""
    if not module.layer and measure not in ("bytes", "file_bytes"):
        return 0
    if measure == "sparsity":
        return 0 if choice == DROPPED else _left(module, choice.sparsity.fraction if choice.sparsity else 0.0)
    stored = bits.storage(module, choice.format)  # checkpoints hold the zeros
    if measure in ("bytes", "file_bytes"):
        return stored.bytes
    return stored.codes if measure == "code_bits" else stored.bits


def sizer(spec: BudgetSpec, inventory: Decoder) -> Callable[[Choice, Linear], int]:
    """What a module adds to a plan's size by ``size_of``; of active bits its share, in units that are whole for all."""
    if spec.measure != "active_bits":
        return lambda choice, module: size_of(choice, module, spec.measure)
    unit = _unit(inventory)
    return lambda choice, module: int(size_of(choice, module, "effective_bits") * inventory.active(module) * unit)


def _unit(inventory: Decoder) -> int:
    """Into how many parts a weight is divided so that those that a token meets come out whole."""
    return math.lcm(*(inventory.active(module).denominator for module in inventory.linears))


def _left(module: Linear, sparsity: float) -> int:
    """Weights that are not zero."""
    return module.weights - round(sparsity * module.weights)


def limit_in(spec: BudgetSpec, inventory: Decoder, named: Container[str], costs: Sequence[Sequence[int]]) -> int:
    """The limit for the sum of the parts' ``costs`` (parts, choices).

    Raises UserError where it is below the smallest plan or above the largest, with a size that can be asked for.
    """
    least, most = (sum(extreme(row) for row in costs) for extreme in (min, max))
    if spec.measure == "file_bytes":
        return most  # what files take is known of whole plans alone
    limit_of, told = sizes(spec, inventory, named)
    limit, sparse = limit_of(spec.size), spec.measure == "sparsity"
    where = f"plan.budget.{spec.measure}: {spec.limit}"
    if limit < least:
        compared = "more" if sparse else "less"
        raise UserError(f"{where}: no plan takes {compared} than {told(least)} with these candidates; add smaller ones")
    if limit > most + _rounding(spec, inventory):
        raise UserError(
            f"{where}: the largest plan of these candidates takes {told(most)}; ask for that, or add larger"
        )
    return limit


def _rounding(spec: BudgetSpec, inventory: Decoder) -> int:
    """Sparsities come in whole zeros for each module."""
    return len(inventory.linears) if spec.measure == "sparsity" else 0


def sizes(
    spec: BudgetSpec, inventory: Decoder, named: Container[str]
) -> tuple[Callable[[Fraction], int], Callable[[int], str]]:
    """From a size in the measure's unit to the limit of the parts' costs, and from costs to the size to ask for."""
    weights = sum(module.weights for module in inventory.linears)
    if spec.measure == "active_bits":
        weights = int(_unit(inventory) * sum(module.weights * inventory.active(module) for module in inventory.linears))
    other = bits.unplanned(inventory, named) * WORD // 8 if spec.measure == "bytes" else 0
    scale = 1 if spec.measure == "bytes" else weights
    sparse, rounding = spec.measure == "sparsity", _rounding(spec, inventory)

    def limit_of(size: Fraction) -> int:
        if sparse:  # what a candidate of this sparsity leaves, so that it fits its own budget
            return sum(_left(module, float(size)) for module in inventory.linears)
        return math.floor(size * scale - other)

    def told(cost: int) -> str:
        exact = 1 - Fraction(2 * cost + rounding, 2 * weights) if sparse else Fraction(cost + other, scale)
        return _shortest(exact, lambda size: cost <= limit_of(size) <= cost + rounding)

    return limit_of, told


def _shortest(near: Fraction, fits: Callable[[Fraction], bool]) -> str:
    """The decimal of the fewest places next to ``near`` that ``fits``."""
    for places in itertools.count():
        scaled = near * 10**places
        for whole in (math.floor(scaled), math.ceil(scaled)):
            if fits(Fraction(whole, 10**places)):
                return f"{whole / 10**places:.{places}f}" if places else str(whole)
    raise AssertionError("decimals come as near as one likes")
