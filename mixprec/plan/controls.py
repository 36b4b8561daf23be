"""Ways to spend a budget that know nothing of the scores, or turn them round: what an allocation has to beat."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mixprec.numerics.formats import Drop, Keep
from mixprec.plan.knapsack import Unit
from mixprec.plan.sensitivity import Choice


def noise(choice: Choice) -> float:
    """How a choice's squared error depends on its size where nothing else is known: 4^-bits, or sparsity²; 0 kept, 1
    dropped."""
    if isinstance(choice.format, Drop):
        return 1.0
    pruned = 0.0 if choice.sparsity is None else choice.sparsity.fraction**2
    return pruned if isinstance(choice.format, Keep) else pruned + 4.0**-choice.format.bits


def random_damages(sizes: Sequence[int], choices: Sequence[Sequence[Choice]], seed: int) -> list[tuple[float, ...]]:
    """Damage per weight that is drawn for each part; ``sizes`` (parts,) in weights."""
    generator = random.Random(seed)
    # Only random() is promised to stay the same across Python versions.
    bases = [generator.random() * size for size in sizes]
    return [tuple(base * noise(choice) for choice in row) for base, row in zip(bases, choices, strict=True)]


def inverted(
    sizes: Sequence[int], choices: Sequence[Sequence[Choice]], damages: Sequence[Sequence[float]]
) -> list[tuple[float, ...]]:
    """As if the parts that suffer most suffered least: damage per weight is one over that of a part's worst choice."""
    worst = [max(row) / size for row, size in zip(damages, sizes, strict=True)]
    floor = 1e-9 * max(worst, default=0.0) or 1.0
    return [
        tuple(size / max(bad, floor) * noise(choice) for choice in row)
        for size, bad, row in zip(sizes, worst, choices, strict=True)
    ]


def uniform(units: Sequence[Unit], limit: int) -> list[int] | None:
    """One choice for all units that have several: the largest that fits, of equal ones the first; None: none fits."""
    fitting = []
    for index in range(max(len(unit.costs) for unit in units)):
        chosen = [index if len(unit.costs) > 1 else 0 for unit in units]  # a pinned unit has one choice
        cost = sum(unit.costs[each] for unit, each in zip(units, chosen, strict=True))
        if cost <= limit:
            fitting.append((cost, -index, chosen))
    return max(fitting)[2] if fitting else None


def from_the_end(units: Sequence[Unit], chosen: Sequence[int], limit: int) -> list[int]:
    """From the last unit to the first, each raised to its next larger choice, as far as the limit allows."""
    result = list(chosen)
    left = limit - sum(unit.costs[index] for unit, index in zip(units, result, strict=True))
    for position in reversed(range(len(units))):
        costs = units[position].costs
        now = costs[result[position]]
        larger = [index for index, cost in enumerate(costs) if now < cost <= now + left]
        if larger:
            result[position] = min(larger, key=lambda index: costs[index])
            left -= costs[result[position]] - now
    return result
