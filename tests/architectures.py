"""Tiny configurations of the architectures that are tested, each with its real structure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import pytest
import torch
from tiny import SHAPE as SIZES
from transformers import AutoConfig, PretrainedConfig

from mixprec.models.discover.building import class_of

_SHAPE: Final[Mapping[str, Any]] = {
    **SIZES,
    "vocab_size": 384,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
_LATENT: Final = {
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
#: A dense layer, then one of experts, one of them shared.
_SHARED: Final = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_DELTA: Final = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_MAMBA: Final = {
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_expand": 2,
    "mamba_chunk_size": 8,
}  # fmt: skip
_WINDOW: Final = {"sliding_window": 16}
#: ``model_type`` -> what its configuration has besides.
TEXT: Final[Mapping[str, Mapping[str, Any]]] = {
    "llama": {},
    "mistral": _WINDOW,
    "ministral": {},
    "ministral3": {},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": _WINDOW,
    "gemma3_text": _WINDOW,
    "olmo2": {},
    "olmo3": _WINDOW,
    "smollm3": {},
    "granite": {
        "logits_scaling": 4.0,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
    },
    "cohere2": {"logit_scale": 0.25, **_WINDOW},
    "glm4": {},
    "phi3": {},
    "mixtral": {},
    "qwen2_moe": {"shared_expert_intermediate_size": 40, "decoder_sparse_step": 1},
    "qwen3_moe": {"decoder_sparse_step": 1},
    "gpt_oss": {"layer_types": ["sliding_attention", "full_attention"], **_WINDOW},
    "glm4_moe": _SHARED,
    "deepseek_v2": {**_SHARED, **_LATENT, "topk_method": "greedy"},
    "deepseek_v3": {**_SHARED, **_LATENT, "n_group": 2},
    "qwen3_next": {**_DELTA, "shared_expert_intermediate_size": 40, "decoder_sparse_step": 1},
    "qwen3_5_text": _DELTA,
    "qwen3_5_moe_text": {**_DELTA, "shared_expert_intermediate_size": 40},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 40, **_MAMBA},
    "bamba": {"attn_layer_indices": [1], **_MAMBA},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention"],
        "n_groups": 1,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "chunk_size": 8,
    },
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
}
#: Others that nothing here was made for.
OTHERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "gemma4_text": {
        "vocab_size_per_layer_input": 384,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
        "global_head_dim": 8,
        "num_global_key_value_heads": 2,
        **_WINDOW,
    },
    "gptj": {"rotary_dim": 8},
    "falcon_mamba": {},
    "xglm": {"ffn_dim": 48},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt_neox": {},
    "bloom": {},
    "stablelm": {},
    "starcoder2": {},
    "exaone4": {},
    "phi": {},
    "olmoe": {},
    "phimoe": {},
    "granitemoe": {},
    "minimax": {"layer_types": ["linear_attention", "full_attention"]},
    "cohere": {"logit_scale": 0.25},
}
_INSIDE: Final = dict(_SHAPE)
_SEEING: Final = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_QWEN_SEEING: Final = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32}
_ROPE: Final = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
#: Text decoders inside of multimodal models.
WRAPPED: Final[Mapping[str, Mapping[str, Any]]] = {
    "gemma3": {
        "text_config": _INSIDE,
        "vision_config": _SEEING,
        "mm_tokens_per_image": 4,
        "image_token_index": 300,
    },
    "mistral3": {
        "text_config": {**_INSIDE, "model_type": "mistral"},
        "vision_config": {**_SEEING, "model_type": "pixtral", "head_dim": 8},
        "image_token_index": 300,
    },
    "qwen2_5_vl": {
        "text_config": {**_INSIDE, **_ROPE},
        "vision_config": {**_QWEN_SEEING, "fullatt_block_indexes": [0]},
    },
    "qwen3_vl": {
        "text_config": {**_INSIDE, **_ROPE},
        "vision_config": {**_QWEN_SEEING, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    },
    "qwen3_5": {
        "text_config": {**_INSIDE, **_DELTA},
        "vision_config": {**_QWEN_SEEING, "num_position_embeddings": 16},
    },
}
ALL: Final = (*TEXT, *OTHERS, *WRAPPED)
#: How those are attributed whose spans can't be packed (docs/importance.md); those of all others can.
PATHS: Final[Mapping[str, str]] = {
    "gpt_oss": "cached",  # attention with sinks
    "qwen3_next": "cached",
    "qwen3_5_text": "cached",
    "qwen3_5_moe_text": "cached",
    "qwen3_5": "cached",
    "lfm2": "cached",
    "lfm2_moe": "cached",
    "granitemoehybrid": "cached",
    "bamba": "cached",
    "nemotron_h": "cached",
    "falcon_h1": "cached",
    "bloom": "cached",  # distances added to scores
    "stablelm": "cached",  # doesn't hand on arguments
    "minimax": "stepwise",
    "gptj": "cached",  # attention of its own
    "xglm": "cached",
    "falcon_mamba": "stepwise",
}


def slow_but(names: Iterable[str], *fast: str) -> list[Any]:
    """Parameters of a test, of which all but the ``fast`` ones are marked slow."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


def config_of(architecture: str, **changes: Any) -> PretrainedConfig:
    """A tiny configuration; ``changes``: keys of it, of the text decoder's where there is one inside."""
    if architecture in WRAPPED:
        keys = dict(WRAPPED[architecture])
        keys["text_config"] = {**keys["text_config"], **changes}
        return AutoConfig.for_model(architecture, **keys)
    return AutoConfig.for_model(architecture, **{**_SHAPE, **(TEXT | OTHERS)[architecture], **changes})


def model_of(architecture: str, seed: int = 0, **changes: Any) -> Any:
    """transformers' own model with random weights, as it builds it."""
    torch.manual_seed(seed)
    config = config_of(architecture, **changes)
    kind = class_of(config)
    assert kind is not None
    return kind._from_config(config).eval()
