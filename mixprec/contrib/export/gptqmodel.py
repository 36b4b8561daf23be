"""GPTQModel: the keyword arguments of its QuantizeConfig, modules that differ from the base under ``dynamic``.

``dynamic`` maps patterns to overrides; it takes the first pattern that matches from a name's start, and "-:" leaves the
modules as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mixprec.contrib.export.support import Support, base_format, gathered
from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder, Rows
from mixprec.numerics.formats import WHOLE_ROW, Format, Keep
from mixprec.plan.patterns import regexes
from mixprec.plan.schema import Plan

_ALL = frozenset(range(2, 9))
_SIZES = frozenset({-1, 16, 32, 64, 128, 256, 512, 1024})
SUPPORT = Support("GPTQModel", _ALL, _ALL, _SIZES)
AWQ_SUPPORT = Support("GPTQModel's AWQ", _ALL, _ALL, frozenset({16, 32, 64, 128}))

#: The plan's method -> what says so in a QuantizeConfig.
METHODS: dict[str, dict[str, Any]] = {
    "gptq": {"method": "gptq"},
    "gptaq": {"method": "gptq", "gptaq": {"alpha": 0.25, "device": "auto"}},
    "awq": {"method": "awq"},
    "rtn": {"weight_only": {"method": "rtn"}},
}


def export(plan: Plan, inventory: Decoder, method: str) -> str:
    """The plan as JSON for ``QuantizeConfig(**json)``.

    Raises UserError for a method that it doesn't have, and for formats that it can't hold.
    """
    if method not in METHODS:
        raise UserError(f"method: {method!r} is not one of GPTQModel's: {', '.join(METHODS)}; choose with --method")
    formats = gathered(plan, inventory, AWQ_SUPPORT if method == "awq" else SUPPORT)
    if method == "awq":
        _check_uniform(formats)
        _check_folded(plan, inventory)
    # Whole rows need an exception of their own: let them be the base only where there is nothing else.
    base = base_format(sorted(formats, key=_whole_row))
    ordered = method in ("gptq", "gptaq")
    dynamic: dict[str, dict[str, Any]] = {}
    for format, addresses in formats.items():
        if format == base:
            continue
        sign, overrides = ("+", _grid(format, ordered)) if isinstance(format, Format) else ("-", {})
        dynamic |= {f"{sign}:{pattern}": overrides for pattern in regexes(addresses)}
    config = {**METHODS[method], **_grid(base, ordered), "lm_head": False, "dynamic": dynamic}
    return json.dumps(config, indent=2) + "\n"


def _check_uniform(formats: Mapping[Format | Keep, Sequence[str]]) -> None:
    """Its AWQ searches scales for the base's bits and groups, whatever ``dynamic`` says, and packs for dynamic's."""
    grids = [format for format in formats if isinstance(format, Format)]
    if len(grids) > 1:
        address = formats[grids[1]][0]
        raise UserError(
            f"{address}: {grids[1]}: GPTQModel's AWQ has one format for all modules that it doesn't keep, and most are "
            f"{grids[0]}; give them one format, or choose another --method"
        )


def _check_folded(plan: Plan, inventory: Decoder) -> None:
    """Its AWQ folds o's and down's scales into what is in front, and where all of that is kept into the norm before."""
    for behind in inventory.groups:
        if not isinstance(behind.source, Rows):
            continue
        front = inventory.group_of(behind.source.linear)
        kept = all(isinstance(plan.formats[module.address], Keep) for module in front)
        for module in behind:
            if kept and not isinstance(plan.formats[module.address], Keep):
                names = ", ".join(each.label for each in front)
                raise UserError(
                    f"{module.address}: {plan.formats[module.address]}: GPTQModel's AWQ breaks it where {names} are "
                    "all kept; keep it too, or choose another --method"
                )


def _whole_row(format: Format | Keep) -> bool:
    return isinstance(format, Format) and format.group_size == WHOLE_ROW


def _grid(format: Format, ordered: bool) -> dict[str, Any]:
    """``ordered``: the method sorts columns by group unless told otherwise, which whole rows make it refuse."""
    unordered = {"act_group_aware": False} if ordered and _whole_row(format) else {}
    return {"bits": format.bits, "group_size": format.group_size, "sym": format.symmetric, **unordered}
