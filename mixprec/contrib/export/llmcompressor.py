"""llm-compressor: a recipe, YAML, with one group of targets for each format; what no group names is left as it is."""

from __future__ import annotations

from typing import Any

import yaml

from mixprec.contrib.export.support import Support, base_format, gathered
from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder
from mixprec.numerics.formats import WHOLE_ROW, Format, Keep
from mixprec.plan.patterns import regexes
from mixprec.plan.schema import Plan

_ALL = frozenset(range(2, 9))
SUPPORT = Support("llm-compressor", _ALL, _ALL)

#: The plan's method -> its modifiers; the last one quantizes.
METHODS = {
    "rtn": ("QuantizationModifier",),
    "gptq": ("GPTQModifier",),
    "awq": ("AWQModifier", "QuantizationModifier"),
}


def export(plan: Plan, inventory: Decoder, method: str) -> str:
    """The plan as a recipe for ``oneshot(recipe=…)``.

    Raises UserError for a method that it doesn't have, and for formats that it can't hold.
    """
    if method not in METHODS:
        raise UserError(
            f"method: {method!r} is not one of llm-compressor's: {', '.join(METHODS)}; choose with --method"
        )
    formats = gathered(plan, inventory, SUPPORT)
    base_format(formats)
    if method == "awq":
        _check_shared_inputs(plan, inventory)
    groups = {
        str(format): {"targets": _targets(addresses), "weights": _weights(format)}
        for format, addresses in formats.items()
        if isinstance(format, Format)
    }
    kept = [address for format, addresses in formats.items() if isinstance(format, Keep) for address in addresses]
    *before, last = METHODS[method]
    modifiers: dict[str, Any] = {name: {} for name in before}
    modifiers[last] = {"ignore": [inventory.head, *_targets(kept)], "config_groups": groups}
    return yaml.safe_dump({"mixprec_stage": {"mixprec_modifiers": modifiers}}, sort_keys=False, width=2000)


def _check_shared_inputs(plan: Plan, inventory: Decoder) -> None:
    """Its AWQ searches one scale for modules that share an input, and rounds all of them in the last one's format."""
    for group in inventory.groups:
        planned = [(module.address, plan.formats[module.address]) for module in group]
        grids = [(address, format) for address, format in planned if isinstance(format, Format)]
        for address, format in grids[1:]:
            if format != grids[0][1]:
                raise UserError(
                    f"{address}: {format}: llm-compressor's AWQ wants one format for modules that share their input, "
                    f"and {grids[0][0]} has {grids[0][1]}; give them one format, or choose another --method"
                )


def _targets(addresses: list[str]) -> list[str]:
    return [f"re:{pattern}" for pattern in regexes(addresses)]


def _weights(format: Format) -> dict[str, Any]:
    whole = format.group_size == WHOLE_ROW
    where = {"strategy": "channel"} if whole else {"strategy": "group", "group_size": format.group_size}
    return {"num_bits": format.bits, "type": "int", "symmetric": format.symmetric, **where}
