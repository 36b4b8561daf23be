"""Relative importance: what rules rank modules by, and what a budget may be spent by."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder

#: behaviour -> module address -> score, as importance.json holds it.
Importance = Mapping[str, Mapping[str, float]]

#: ``behaviour`` that ranks by the sum of the relative importances of all behaviours.
ALL = "all"


def summed_importance(behaviour: str, inventory: Decoder, importance: Importance | None) -> dict[str, float]:
    """Relative importance of each module for one behaviour, or its sum over all of them."""
    if importance is None:
        raise UserError("it ranks modules, but there is no importance yet; run mixprec attribute first")
    if behaviour != ALL and behaviour not in importance:
        known = ", ".join([ALL, *importance])
        raise UserError(f"behaviour: {behaviour!r} is not in the importance; there are {known}")
    chosen = importance if behaviour == ALL else {behaviour: importance[behaviour]}
    relative = [relative_importance(name, scores, inventory) for name, scores in chosen.items()]
    addresses = [module.address for module in inventory.linears]
    return {address: math.fsum(scores[address] for scores in relative) for address in addresses}


def relative_importance(behaviour: str, scores: Mapping[str, float], inventory: Decoder) -> dict[str, float]:
    """RI = I / ΣI (paper §2.2) over the linear modules."""
    missing = [module.address for module in inventory.linears if module.address not in scores]
    if missing:
        raise UserError(
            f"the importance for {behaviour} lacks {len(missing)} modules of the model, first {missing[0]}; "
            "was it made for another model?"
        )
    listed = {module.address: scores[module.address] for module in inventory.linears}
    bad = [address for address, score in listed.items() if not (math.isfinite(score) and score >= 0)]
    total = math.fsum(score for score in listed.values() if math.isfinite(score))
    if bad or total == 0:
        which = f"{bad[0]} has {listed[bad[0]]}" if bad else "all are 0"
        raise UserError(f"the importance for {behaviour} can't be ranked: {which}")
    return {address: score / total for address, score in listed.items()}
