"""The tails of the weights' spectra: what AlphaPruning allocates sparsity by. One weight in memory at a time."""

from __future__ import annotations

from collections.abc import Callable

from mixprec.core import artifacts
from mixprec.models.model import Model
from mixprec.models.tensors import check_finite, take
from mixprec.numerics.spectrum import hill_alpha

#: Raised when exponents come out otherwise from the same weights: they are made again then (tests/test_stage_rules.py).
RULES = 1


def alphas(model: Model, advance: Callable[[int], None] = lambda _: None) -> dict[str, float]:
    """Module address -> exponent of its weight's spectrum (numerics.spectrum).

    ``advance`` is told of every module. Raises UserError for broken files, and weights that are NaN or infinite.
    """
    source = model.original.source
    found = {}
    for module in model.decoder.linears:
        path = source.folder / source.tensors[module.weight_name].shard
        with artifacts.open_tensors(path) as file:
            weight = take(file, module.weight_name, source.tensors[module.weight_name])
        check_finite(f"{path}: {module.weight_name}", weight)
        found[module.address] = hill_alpha(weight)
        advance(1)
    return found
