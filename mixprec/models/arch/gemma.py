"""Gemma 1 to 3 (text): norms multiply by 1 + weight, the head is the embedding where nothing else is said."""

from __future__ import annotations

from dataclasses import replace

from mixprec.models.arch.family import Family
from mixprec.models.arch.llama import QWEN3, attention, gated, shared

GEMMA = Family(
    parts={"attn": attention("attention_bias", "attention_bias"), "mlp": gated()},
    shared=shared("post_attention_layernorm"),
    norms=("input_layernorm", "post_attention_layernorm"),
    offset=1.0,
    defaults={
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "vocab_size": 256000,
        "tie_word_embeddings": True,
    },
)
#: Norms behind attention and MLP too: post_attention_layernorm sees what attention puts out.
GEMMA2 = replace(
    GEMMA,
    shared=shared("pre_feedforward_layernorm"),
    norms=(*GEMMA.norms, "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    defaults=GEMMA.defaults
    | {
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
)
GEMMA3 = replace(GEMMA2, head_norms=QWEN3.head_norms, defaults=GEMMA2.defaults | {"vocab_size": 262208})
