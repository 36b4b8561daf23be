"""Llama and what is built as it: Mistral, Qwen 2 and 3."""

from __future__ import annotations

from dataclasses import replace

from mixprec.models.arch.family import Family, Row, Shared


def attention(bias: bool | str, out_bias: bool | str) -> tuple[Row, ...]:
    """Softmax attention with projections of its own for q, k, v and what it puts out."""
    return (
        Row("q", "self_attn.q_proj", "query", "hidden", bias, compares=True),
        Row("k", "self_attn.k_proj", "key", "hidden", bias, compares=True),
        Row("v", "self_attn.v_proj", "key", "hidden", bias),
        Row("o", "self_attn.o_proj", "hidden", "query", out_bias),
    )


def gated(bias: bool | str = False) -> tuple[Row, ...]:
    """A gated MLP: down(act(gate(x)) * up(x))."""
    return (
        Row("gate", "mlp.gate_proj", "intermediate", "hidden", bias),
        Row("up", "mlp.up_proj", "intermediate", "hidden", bias),
        Row("down", "mlp.down_proj", "hidden", "intermediate", bias),
    )


def shared(mlp_norm: str) -> tuple[Shared, ...]:
    """Who shares an input in a block of attention and a gated MLP; ``mlp_norm``: the norm in front of the MLP."""
    return (
        Shared(("q", "k", "v"), norm="input_layernorm", fused="self_attn.qkv_proj"),
        Shared(("o",), rows="v", heads=True),
        Shared(("gate", "up"), norm=mlp_norm, fused="mlp.gate_up_proj"),
        Shared(("down",), rows="up"),
    )


LLAMA = Family(
    parts={"attn": attention("attention_bias", "attention_bias"), "mlp": gated("mlp_bias")},
    shared=shared("post_attention_layernorm"),
    norms=("input_layernorm", "post_attention_layernorm"),
    defaults={
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
)
MISTRAL = replace(
    LLAMA,
    parts={"attn": attention(False, False), "mlp": gated()},
    defaults=LLAMA.defaults | {"intermediate_size": 14336, "num_key_value_heads": 8},
)
_QWEN = LLAMA.defaults | {"intermediate_size": 22016, "num_key_value_heads": 32, "vocab_size": 151936}
QWEN2 = replace(LLAMA, parts={"attn": attention(True, False), "mlp": gated()}, defaults=_QWEN)
QWEN3 = replace(
    LLAMA,
    parts={"attn": attention("attention_bias", "attention_bias"), "mlp": gated()},
    head_norms=("self_attn.q_norm", "self_attn.k_norm"),
    defaults=_QWEN | {"head_dim": 128},
)
