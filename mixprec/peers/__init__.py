"""Other quantizers in mixprec's runs: each in a Python environment of its own, called through one small runner."""

from collections.abc import Mapping
from typing import Final, Literal

from mixprec.plan.methods import Method

#: What compresses: mixprec's own methods, or a peer.
Engine = Literal["mixprec", "gptqmodel", "llmcompressor", "autoround", "modelopt"]

#: Methods of plans that each peer carries out. AutoRound learns how weights are rounded to a plan's plain grid.
METHODS: Final[Mapping[str, tuple[Method, ...]]] = {
    "gptqmodel": ("rtn", "gptq", "gptaq", "awq"),
    "llmcompressor": ("rtn", "gptq", "awq", "sparsegpt"),
    "autoround": ("rtn",),
    "modelopt": ("rtn", "awq"),
}
