"""The families of decoders as tables, whose maps need no torch; all others are discovered (models/discover.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mixprec.models.arch import gemma, llama
from mixprec.models.arch.family import Family, Known, Shared

#: ``config.model_type`` -> what its decoders are made of.
FAMILIES: Final[Mapping[str, Family]] = {
    "llama": llama.LLAMA,
    "qwen2": llama.QWEN2,
    "qwen3": llama.QWEN3,
    "mistral": llama.MISTRAL,
    "gemma": gemma.GEMMA,
    "gemma2": gemma.GEMMA2,
    "gemma3_text": gemma.GEMMA3,
}

#: A norm, softmax attention, a norm, a gated MLP; with experts in place of the MLP, these fold nowhere.
_LLAMA = Known(llama.shared("post_attention_layernorm"))
#: Norms behind attention and MLP alone.
_BEHIND = Known((Shared(("o",), rows="v", heads=True), Shared(("down",), rows="up")))
#: Linears that are fused in the checkpoint already.
_FUSED = (Shared(("gate_up",), norm="post_attention_layernorm"),)
#: ``config.model_type`` of a text decoder that is discovered -> where scales fold.
KNOWN: Final[Mapping[str, Known]] = {
    **dict.fromkeys(
        ("ministral", "ministral3", "smollm3", "granite", "seed_oss", "mixtral", "qwen2_moe", "qwen3_moe",
         "glm4_moe", "qwen2_5_vl_text", "qwen3_vl_text"),
        _LLAMA,
    ),
    **dict.fromkeys(("olmo2", "olmo3", "cohere2"), _BEHIND),
    "glm4": Known((*_LLAMA.shared[:2], *_FUSED)),
    "phi3": Known((Shared(("qkv",), norm="input_layernorm"), *_FUSED)),
}  # fmt: skip
