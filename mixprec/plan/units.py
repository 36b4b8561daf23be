"""What a rule chooses: single modules, or tied the groups that runtimes fuse (q/k/v and gate/up) as a whole."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder, Linear
from mixprec.models.labels import select

#: Modules that get one format.
Unit = tuple[Linear, ...]


def units(inventory: Decoder, selectors: Sequence[str], tied: bool, *, outside: bool = False) -> list[Unit]:
    """The modules of all selectors, in the model's order; ``tied``: with all others of their groups. ``outside``:
    selectors may mean what lies outside the blocks too.

    Raises UserError where a selector matches nothing.
    """
    known = inventory.outside_named if outside else {}
    found = {module.address for selector in selectors for module in select(inventory.linears, selector, known)}
    if not tied:
        return [(module,) for module in (*inventory.linears, *inventory.outside) if module.address in found]
    everything = [*inventory.fused, *((module,) for module in inventory.outside)]
    return [unit for unit in everything if any(module.address in found for module in unit)]


def draw_others(inventory: Decoder, chosen: Sequence[Unit], seed: int, tied: bool) -> list[Linear]:
    """For each chosen unit another one of its shapes, none of the chosen ones; the same on every machine.

    Raises UserError where the model has too few of a shape.
    """
    generator = random.Random(seed)
    free = [unit for unit in _all(inventory, tied) if unit not in chosen]
    # Only random() is promised to stay the same across Python versions, so draw by sorting.
    free.sort(key=lambda _: generator.random())
    drawn: list[Linear] = []
    for unit in chosen:
        other = next((candidate for candidate in free if _shapes(candidate) == _shapes(unit)), None)
        if other is None:
            shapes = ", ".join(f"{rows} x {columns}" for rows, columns in _shapes(unit))
            raise UserError(
                f"too few other modules of the shape {shapes} of {unit[0].label} to draw from; select fewer modules"
            )
        free.remove(other)
        drawn += other
    return drawn


def lowest(chosen: Sequence[Unit], scores: Mapping[str, float], count: int) -> list[Linear]:
    """The ``count`` units with the lowest sums of ``scores``; of equal ones the earlier in the model."""
    if count > len(chosen):
        raise UserError(f"count: {count}: the selector matches only {len(chosen)} modules")
    ranked = sorted(chosen, key=lambda unit: math.fsum(scores[module.address] for module in unit))
    return [module for unit in ranked[:count] for module in unit]


def _all(inventory: Decoder, tied: bool) -> list[Unit]:
    return list(inventory.fused) if tied else [(module,) for module in inventory.linears]


def _shapes(unit: Unit) -> list[tuple[int, int]]:
    return [(module.out_features, module.in_features) for module in unit]
