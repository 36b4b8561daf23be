"""Who compresses: mixprec's own methods, or another quantizer (mixprec/contrib/peers carries it out)."""

from collections.abc import Mapping
from typing import Final, Literal

from mixprec.plan.methods import Method

Engine = Literal["mixprec", "gptqmodel", "llmcompressor", "autoround", "modelopt"]

#: Methods of plans that each of the others carries out. AutoRound learns the rounding to a plan's plain grid.
METHODS: Final[Mapping[str, tuple[Method, ...]]] = {
    "gptqmodel": ("rtn", "gptq", "gptaq", "awq"),
    "llmcompressor": ("rtn", "gptq", "awq", "sparsegpt"),
    "autoround": ("rtn",),
    "modelopt": ("rtn", "awq"),
}
