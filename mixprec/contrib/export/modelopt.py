"""ModelOpt: a quantization configuration for ``mtq.quantize``: nothing is quantized but the weights that are named.

Entries apply in order, names are globs over quantizers.
"""

from __future__ import annotations

import json
from typing import Any

from mixprec.contrib.export.support import Support, base_format, gathered
from mixprec.models.decoder import Decoder
from mixprec.numerics.formats import WHOLE_ROW, Format
from mixprec.plan.patterns import globs
from mixprec.plan.schema import Plan

SUPPORT = Support("ModelOpt", frozenset(range(2, 9)), frozenset(), ragged=False)


def export(plan: Plan, inventory: Decoder, method: str) -> str:
    """The plan as JSON for ``mtq.quantize``; ``method`` awq asks for its awq_lite, every other one for plain rounding.

    Raises UserError for formats that it can't hold.
    """
    formats = gathered(plan, inventory, SUPPORT)
    base_format(formats)
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for format, addresses in formats.items():
        if isinstance(format, Format):
            cfg = _cfg(format)
            entries += [{"quantizer_name": f"{name}.weight_quantizer", "cfg": cfg} for name in globs(addresses)]
    algorithm = "awq_lite" if method == "awq" else "max"
    return json.dumps({"quant_cfg": entries, "algorithm": algorithm}, indent=2) + "\n"


def _cfg(format: Format) -> dict[str, Any]:
    if format.group_size == WHOLE_ROW:
        return {"num_bits": format.bits, "axis": 0}
    return {"num_bits": format.bits, "block_sizes": {"-1": format.group_size}}
