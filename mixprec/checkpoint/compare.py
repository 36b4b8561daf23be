"""Two checkpoints of one model side by side, whoever wrote them: bits and the difference of the weights, by module."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from mixprec.checkpoint.reader import Checkpoint
from mixprec.compress.module import relative_error
from mixprec.core.errors import UserError


class Difference(NamedTuple):
    """One module in both: formats, or types of weights that aren't packed, bits per weight on disk, and
    ‖W_b − W_a‖ / ‖W_a‖ in Frobenius norms."""

    label: str
    weights: int
    format_a: str
    format_b: str
    bits_a: float
    bits_b: float
    error: float


def diff(a: Checkpoint, b: Checkpoint, advance: Callable[[int], object] = lambda _: None) -> dict[str, Difference]:
    """Address -> difference, in the model's order; ``a`` is what errors are relative to.

    Raises UserError where the checkpoints are not of one architecture and shape.
    """
    check_same_model(a, b)
    found = {}
    with torch.no_grad():
        for module in a.inventory.planned(b.layouts):
            first, second = a.layouts[module.address], b.layouts[module.address]
            error = relative_error(a.weight(module), b.weight(module))
            found[module.address] = Difference(
                module.label,
                module.weights,
                first.name,
                second.name,
                8 * first.bytes / module.weights,
                8 * second.bytes / module.weights,
                error,
            )
            advance(1)
    return found


def check_same_model(a: Checkpoint, b: Checkpoint) -> None:
    """Both have the same linear modules.

    Raises UserError naming the first that differs.
    """
    for one, other in ((a, b), (b, a)):
        shapes = {m.address: (m.out_features, m.in_features) for m in other.inventory.linears}
        for module in one.inventory.linears:
            mine = (module.out_features, module.in_features)
            if shapes.get(module.address) != mine:
                theirs = shapes.get(module.address)
                has = f"has {theirs[0]} x {theirs[1]}" if theirs else "has no such module"
                raise UserError(
                    f"{one.path} and {other.path} are not of one model: {module.address} is {mine[0]} x {mine[1]} in "
                    f"the former, the latter {has}"
                )
