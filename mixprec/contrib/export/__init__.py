"""Plans in the override syntax of other quantizers: one file per target, text out, patterns that match exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mixprec.contrib.export import autoround, gptqmodel, llamacpp, llmcompressor, modelopt
from mixprec.models.decoder import Decoder
from mixprec.plan.schema import Plan

#: (plan, the model's modules, method) -> the target's file. Raises UserError for what the target can't hold.
Exporter = Callable[[Plan, Decoder, str], str]

TARGETS: Final[dict[str, Exporter]] = {
    "gptqmodel": gptqmodel.export,
    "llmcompressor": llmcompressor.export,
    "autoround": autoround.export,
    "llamacpp": llamacpp.export,
    "modelopt": modelopt.export,
}
