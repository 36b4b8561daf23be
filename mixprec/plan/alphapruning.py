"""AlphaPruning: each unit's sparsity from the tail of its spectrum, all together exactly the target.

arXiv 2410.10912, §3.2: sparsity = η [(α − α_min) / (α_max − α_min) (s2 − s1) + s1], with the η that makes the average
over all weights the target; s1 = 1 − ε and s2 = 1 + ε as in the released code. A heavy tail (small α, see
numerics.spectrum) is pruned less. A unit is a linear module, or a whole block with the mean α of its modules
(``by_block``), which is what the paper does with language models.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping

#: ε with which the released scripts run SparseGPT; 0.3 with Wanda, 0.5 with magnitudes.
EPSILON = 0.2
#: No unit loses more than this share of its weights unless the caller says so: an empty module breaks a model.
CAP = 0.99


def allocate(
    alphas: Mapping[str, float],
    weights: Mapping[str, int],
    target: float,
    *,
    epsilon: float = EPSILON,
    cap: float = CAP,
) -> dict[str, float]:
    """Unit -> sparsity, in the order of ``alphas``: their average over ``weights`` (unit -> number) is ``target``.

    Where the formula asks for more than ``cap`` of a unit, the unit gets ``cap`` and η rises for the others; the
    released code would go past 1. Units with equal α all get the target.

    Raises ValueError unless 0 < target <= cap < 1 and 0 <= epsilon < 1, and for units with an α that is not finite, or
    without weights.
    """
    if not 0 < target <= cap < 1:
        raise ValueError(f"0 < target <= cap < 1 must hold; the target is {target}, the cap {cap}")
    if not 0 <= epsilon < 1:
        raise ValueError(f"epsilon must be at least 0 and below 1, it is {epsilon}")
    if not alphas or set(alphas) != set(weights):
        raise ValueError(f"alphas and weights are not of the same units: {sorted(set(alphas) ^ set(weights))[:3]}")
    broken = [unit for unit, alpha in alphas.items() if not math.isfinite(alpha) or weights[unit] <= 0]
    if broken:
        raise ValueError(f"{broken[0]}: alpha {alphas[broken[0]]}, {weights[broken[0]]} weights")
    shares = _linear(alphas, 1 - epsilon, 1 + epsilon)
    return _scaled(shares, weights, target, cap)


def by_block(alphas: Mapping[str, float], blocks: Mapping[str, Hashable]) -> dict[str, float]:
    """Each module's α replaced by the mean of its block's; ``blocks``: module -> block. The mean counts modules, not
    weights, as in the released code."""
    members: dict[Hashable, list[float]] = {}
    for module, alpha in alphas.items():
        members.setdefault(blocks[module], []).append(alpha)
    means = {block: math.fsum(values) / len(values) for block, values in members.items()}
    return {module: means[blocks[module]] for module in alphas}


def _linear(alphas: Mapping[str, float], low: float, high: float) -> dict[str, float]:
    least, most = min(alphas.values()), max(alphas.values())
    if least == most:
        return dict.fromkeys(alphas, 1.0)
    return {unit: (alpha - least) / (most - least) * (high - low) + low for unit, alpha in alphas.items()}


def _scaled(shares: Mapping[str, float], weights: Mapping[str, int], target: float, cap: float) -> dict[str, float]:
    """min(cap, η · share) with the η that makes their weighted average ``target``; shares are above 0."""
    wanted = target * sum(weights.values())
    free = sorted(shares, key=lambda unit: shares[unit])
    capped = 0
    # Who is capped at one η is capped at every higher one: from the largest share down, until the rest fits.
    while free:
        eta = (wanted - cap * capped) / math.fsum(shares[unit] * weights[unit] for unit in free)
        if eta * shares[free[-1]] <= cap:
            break
        capped += weights[free.pop()]
    kept = set(free)
    return {unit: eta * shares[unit] if unit in kept else cap for unit in shares}
