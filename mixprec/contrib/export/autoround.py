"""AutoRound: the keyword arguments of ``AutoRound``: ``scheme`` for most modules, ``layer_config`` for the others."""

from __future__ import annotations

import json
from typing import Any

from mixprec.contrib.export.support import Support, base_format, gathered
from mixprec.models.decoder import Decoder
from mixprec.numerics.formats import Format, Keep
from mixprec.plan.patterns import regexes
from mixprec.plan.schema import Plan

# It leaves matrices alone whose sides aren't multiples of 32, without a word, and refuses 8 bits with zero points.
SUPPORT = Support("AutoRound", frozenset(range(2, 9)), frozenset(range(2, 8)), multiple=32)


def export(plan: Plan, inventory: Decoder, method: str) -> str:
    """The plan as JSON for ``AutoRound(model, tokenizer, **json)``; a plan for rtn has ``iters`` 0.

    Raises UserError for formats that it can't hold.
    """
    formats = gathered(plan, inventory, SUPPORT)
    base = base_format(formats)
    layers: dict[str, dict[str, Any]] = {}
    for format, addresses in formats.items():
        if format == base:
            continue
        scheme = {"bits": 16, "act_bits": 16, "data_type": "float"} if isinstance(format, Keep) else _scheme(format)
        # It puts a backslash before every dot itself.
        layers |= dict.fromkeys(regexes(addresses, dot="."), scheme)
    iterations = {"iters": 0} if method == "rtn" else {}
    return json.dumps({"scheme": _scheme(base), "layer_config": layers, **iterations}, indent=2) + "\n"


def _scheme(format: Format) -> dict[str, Any]:
    return {
        "bits": format.bits,
        "group_size": format.group_size,
        "sym": format.symmetric,
        "data_type": "int",
        "act_bits": 16,
    }
