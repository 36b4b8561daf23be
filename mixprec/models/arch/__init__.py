"""The families of decoders as tables, whose maps need no torch; all others are discovered (models/discover/)."""

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

#: A norm, softmax attention, a norm, a gated MLP.
_LLAMA = Known(llama.shared("post_attention_layernorm"))
#: Norms behind attention and MLP alone, which read the residual stream as it is.
_BEHIND = Known(
    (
        Shared(("q", "k", "v")),
        Shared(("o",), rows="v", heads=True),
        Shared(("gate", "up")),
        Shared(("down",), rows="up"),
    )
)
#: Linears that are fused in the checkpoint already: what multiplies the gate is half of one.
_FUSED = (Shared(("gate_up",), norm="post_attention_layernorm"), Shared(("down",)))


def _mixture(attention: tuple[Shared, ...], norm: str, *routers: str, offset: float = 0.0) -> Known:
    """Experts, some of them for all tokens, or a dense MLP, behind one norm, which routers read too."""
    experts = (
        Shared(("gate", "up"), norm=norm),
        Shared(("down",), rows="up"),
        Shared(("shared_gate", "shared_up"), norm=norm),
        Shared(("shared_down",), rows="shared_up"),
    )
    return Known((*attention, *experts), offset, {norm: routers})


def _hybrid(mixer: tuple[Shared, ...], norm: str, mlp: str) -> tuple[Shared, ...]:
    """Attention in some blocks and another ``mixer`` in the others, behind one norm, and a gated MLP."""
    attention = (Shared(("q", "k", "v"), norm=norm), Shared(("o",), rows="v", heads=True))
    return (*mixer, *attention, Shared(("gate", "up"), norm=mlp), Shared(("down",), rows="up"))


_ATTENTION = _LLAMA.shared[:2]
#: Keys and values from one latent vector: rows of kv_b that are values lie between those that are keys.
_LATENT = (
    Shared(("q_a", "kv_a"), norm="input_layernorm"),
    Shared(("q", "kv_a"), norm="input_layernorm"),
    Shared(("q_b",), norm="self_attn.q_a_layernorm"),
    Shared(("kv_b",), norm="self_attn.kv_a_layernorm"),
    Shared(("o",)),
)
#: Mamba-2 with a norm behind its gate.
_MAMBA = (Shared(("in",), norm="input_layernorm"), Shared(("out",), norm="mamba.norm"))
#: A gated delta rule: the norm behind it has one weight for all heads.
_DELTA = (
    Shared(("in_qkvz", "in_ba"), norm="input_layernorm"),
    Shared(("in_qkv", "in_z", "in_b", "in_a"), norm="input_layernorm"),
    Shared(("out",)),
)
#: A short convolution, of products of parts of what goes in.
_CONVOLUTION = (Shared(("in",), norm="operator_norm"), Shared(("out",)))
_QWEN_ROUTERS = ("mlp.gate", "mlp.shared_expert_gate")
_POST = "post_attention_layernorm"
#: ``config.model_type`` of a text decoder that is discovered -> where scales fold.
KNOWN: Final[Mapping[str, Known]] = {
    **dict.fromkeys(
        ("ministral", "ministral3", "smollm3", "granite", "seed_oss", "qwen2_5_vl_text", "qwen3_vl_text"), _LLAMA
    ),
    **dict.fromkeys(("olmo2", "olmo3"), _BEHIND),
    "cohere2": Known(llama.shared("input_layernorm")),  # attention and MLP read one norm
    "glm4": Known((*_ATTENTION, *_FUSED)),
    "phi3": Known((Shared(("qkv",), norm="input_layernorm"), Shared(("o",)), *_FUSED)),
    **dict.fromkeys(
        ("mixtral", "qwen2_moe", "qwen3_moe", "glm4_moe", "olmoe"), _mixture(_ATTENTION, _POST, *_QWEN_ROUTERS)
    ),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), _mixture(_LATENT, _POST, "mlp.gate")),
    # Its experts put out (up + 1) times the gate.
    "gpt_oss": Known(
        (*_ATTENTION, Shared(("gate", "up"), norm=_POST), Shared(("down",))), readers={_POST: ("mlp.router",)}
    ),
    **dict.fromkeys(
        ("qwen3_next", "qwen3_5_moe_text"), _mixture((*_DELTA, *_ATTENTION), _POST, *_QWEN_ROUTERS, offset=1.0)
    ),
    "qwen3_5_text": Known(_hybrid(_DELTA, "input_layernorm", _POST), offset=1.0),
    "lfm2": Known(_hybrid(_CONVOLUTION, "operator_norm", "ffn_norm")),
    "lfm2_moe": Known(_hybrid(_CONVOLUTION, "operator_norm", "ffn_norm"), readers={"ffn_norm": ("feed_forward.gate",)}),
    "bamba": Known(_hybrid(_MAMBA, "input_layernorm", "pre_ff_layernorm")),
    "granitemoehybrid": Known(
        (
            *_hybrid(_MAMBA, "input_layernorm", _POST),
            Shared(("shared_gate_up",), norm=_POST),
            Shared(("shared_down",)),  # what multiplies the gate is half of one matrix
        ),
        readers={_POST: ("block_sparse_moe.router",)},
    ),
}
