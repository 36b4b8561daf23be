"""Mixtures of experts as GGUF has them: what their configurations say beside other models', and what isn't written.

What llama.cpp computes of each was read in its models (src/models/) and seen by running them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import gguf

from mixprec.models.gguf.names import LATENT

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: Configuration's key -> key of the metadata behind the architecture; which of them a configuration has, its kind says.
_NUMBERS: Final = {
    "num_experts": "expert_count",
    "num_local_experts": "expert_count",
    "n_routed_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "n_shared_experts": "expert_shared_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "first_k_dense_replace": "leading_dense_block_count",
    "n_group": "expert_group_count",
    "topk_group": "expert_group_used_count",
    "routed_scaling_factor": "expert_weights_scale",
    "norm_topk_prob": "expert_weights_norm",
    "q_lora_rank": "attention.q_lora_rank",
    "kv_lora_rank": "attention.kv_lora_rank",
    "qk_rope_head_dim": "rope.dimension_count",
    "sliding_window": "attention.sliding_window",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_KEYS: Final = {
    "mixtral": ("num_local_experts", "num_experts_per_tok"),
    "qwen2_moe": (
        "num_experts", "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size",
    ),
    "qwen3_moe": ("num_experts", "num_experts_per_tok", "moe_intermediate_size"),
    "glm4_moe": (
        "n_routed_experts", "num_experts_per_tok", "n_shared_experts", "moe_intermediate_size",
        "first_k_dense_replace", "routed_scaling_factor", "norm_topk_prob",
    ),
    "gpt_oss": ("num_local_experts", "num_experts_per_tok", "sliding_window"),
    **dict.fromkeys(
        LATENT,
        (
            "n_routed_experts", "num_experts_per_tok", "n_shared_experts", "moe_intermediate_size",
            "first_k_dense_replace", "n_group", "topk_group", "routed_scaling_factor", "norm_topk_prob", "q_lora_rank",
            "kv_lora_rank", "qk_rope_head_dim",
        ),
    ),
}  # fmt: skip
#: What makes probabilities of a router's outputs, where the architecture alone doesn't say it.
_GATES: Final = {
    "deepseek_v2": gguf.ExpertGatingFuncType.SOFTMAX,
    "deepseek_v3": gguf.ExpertGatingFuncType.SIGMOID,
    "glm4_moe": gguf.ExpertGatingFuncType.SIGMOID,
}
_COMMON: Final = ("max_position_embeddings", "rms_norm_eps")
#: Layers of DeepSeek-V2-Lite and its kind, by which llama.cpp knows that queries have no matrix in between.
_LITE: Final = (26, 27)
#: Of YaRN, what llama.cpp takes where nothing else is said.
_FAST, _SLOW = 32, 1
#: What llama.cpp computes gpt-oss with, whatever the file says: its gate, and windows in every other layer.
_GPT_OSS: Final = {"swiglu_alpha": 1.702, "swiglu_limit": 7.0, "attention_bias": True}
_WINDOWS: Final = ("sliding_attention", "full_attention")


def problem(config: PretrainedConfig) -> str | None:
    """Why no GGUF file of this mixture can be written, or None."""
    kind = config.model_type
    if kind in LATENT:
        return _latent_problem(config)
    if kind == "gpt_oss":
        return _gpt_oss_problem(config)
    if kind == "glm4_moe":
        return _glm_problem(config)
    if kind != "mixtral" and (config.mlp_only_layers or config.decoder_sparse_step != 1):
        return f"llama.cpp's {kind} has experts in every layer, this model not"
    if kind == "qwen2_moe" and config.norm_topk_prob:
        return "norm_topk_prob: llama.cpp's Qwen2-MoE weighs experts by their probabilities as they are"
    if kind == "qwen3_moe" and not config.norm_topk_prob:
        return (
            "norm_topk_prob: llama.cpp's Qwen3-MoE makes the weights of a token's experts sum up to 1, this model not"
        )
    if kind == "qwen3_moe" and config.attention_bias:
        return "attention_bias: llama.cpp's Qwen3-MoE has none"
    return None


def _latent_problem(config: PretrainedConfig) -> str | None:
    rope = config.rope_parameters
    if not getattr(config, "rope_interleave", True):
        return "rope_interleave: llama.cpp's DeepSeek turns pairs of neighbours, this model halves"
    if config.attention_bias:
        return "attention_bias: llama.cpp's DeepSeek has none"
    if config.q_lora_rank is None and config.num_hidden_layers not in _LITE:
        return (
            f"q_lora_rank: llama.cpp's DeepSeek does without in models of {' or '.join(map(str, _LITE))} layers alone"
        )
    if config.model_type == "deepseek_v2" and config.topk_method != "greedy":
        return (
            f"topk_method: {config.topk_method}: llama.cpp scores a group by its two best experts, DeepSeek-V2 by the "
            "best one"
        )
    if rope.get("rope_type") == "yarn" and (rope.get("mscale") or 1) != (rope.get("mscale_all_dim") or 0):
        return "rotary embeddings by YaRN are written where mscale and mscale_all_dim are the same"
    return _yarn_problem(rope)


def _gpt_oss_problem(config: PretrainedConfig) -> str | None:
    for key, wanted in _GPT_OSS.items():
        if getattr(config, key) != wanted:
            return f"{key}: llama.cpp computes gpt-oss with {wanted}, this model has {getattr(config, key)}"
    if config.layer_types != [_WINDOWS[layer % 2] for layer in range(config.num_hidden_layers)]:
        return "llama.cpp lets every second layer of gpt-oss attend to everything, this model others"
    rope = config.rope_parameters
    if any(rope.get(key) is not None for key in ("mscale", "mscale_all_dim", "attention_factor")):
        return "rotary embeddings by YaRN are written of gpt-oss without mscale and attention_factor"
    return _yarn_problem(rope)


def _glm_problem(config: PretrainedConfig) -> str | None:
    if config.n_group != 1:
        return f"n_group: {config.n_group}: files of GLM-4.5 are written without groups of experts"
    return None


def note(config: PretrainedConfig) -> str | None:
    """What llama.cpp computes otherwise than this mixture, whoever writes its file, or None."""
    rope = config.rope_parameters
    if config.model_type == "gpt_oss" and rope.get("rope_type") == "yarn" and not rope.get("truncate", True):
        return (
            "rope_parameters.truncate: false: llama.cpp rounds where YaRN's ramp begins and ends to whole frequencies, "
            "this model doesn't; it does so with every file of gpt-oss, and its logits differ by that"
        )
    return None


def _yarn_problem(rope: Mapping[str, Any]) -> str | None:
    if rope.get("rope_type") != "yarn":
        return None
    if (rope.get("beta_fast") or _FAST, rope.get("beta_slow") or _SLOW) != (_FAST, _SLOW):
        return f"rotary embeddings by YaRN are written with beta_fast {_FAST} and beta_slow {_SLOW}"
    return None


def add(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    """Put what a mixture has besides into ``writer``."""
    kind = config.model_type
    keys = dict.fromkeys(_KEYS[kind])
    if kind == "deepseek_v2":  # greedy: no groups; its weights are never made to sum up to 1
        for key in ("n_group", "topk_group", "norm_topk_prob"):
            del keys[key]
    for key in keys:
        value = getattr(config, key)
        if value is not None:
            _put(writer, _NUMBERS[key], value)
    if kind in _GATES:
        writer.add_expert_gating_func(_GATES[kind])
    if kind == "gpt_oss":  # there is no other width
        writer.add_expert_feed_forward_length(config.intermediate_size)
    rope = config.rope_parameters
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if kind in LATENT:
            writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])


def _put(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    name = f"{writer.arch}.{key}"
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    else:
        writer.add_uint32(name, value)


def add_attention(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    """Widths of latent attention: to llama.cpp it has one head for keys and values, as wide as what they share."""
    rank, rope = config.kv_lora_rank, config.qk_rope_head_dim
    writer.add_head_count_kv(1)
    writer.add_key_length(rank + rope)
    writer.add_value_length(rank)
    writer.add_key_length_mla(config.qk_nope_head_dim + rope)
    writer.add_value_length_mla(config.v_head_dim)


def is_mixture(reader: Any) -> bool:
    """Whether a file's metadata are those of a mixture of experts."""
    return bool(_said(reader, "expert_count"))


#: Architecture in GGUF -> model_type; of DeepSeek there are two.
_KINDS: Final = {
    "llama": "mixtral",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "gpt-oss": "gpt_oss",
    "glm4moe": "glm4_moe",
}


def described(reader: Any) -> dict[str, Any]:
    """The configuration's keys of a mixture that a file's metadata say, beside those of every model."""
    architecture = str(reader.get_field("general.architecture").contents())
    kind = _KINDS.get(architecture)
    if kind is None:
        sigmoid = _said(reader, "expert_gating_func") == gguf.ExpertGatingFuncType.SIGMOID
        kind = "deepseek_v3" if sigmoid else "deepseek_v2"
    said = {key: _said(reader, _NUMBERS[key]) for key in (*_KEYS[kind], *_COMMON)}
    found = {key: value for key, value in said.items() if value is not None}
    found["model_type"] = kind
    found["rope_parameters"] = {"rope_type": "default", "rope_theta": _said(reader, "rope.freq_base") or 10_000.0}
    if kind == "qwen3_moe":
        found["norm_topk_prob"] = True
    if kind in LATENT:
        found |= _latent(reader, kind)
    if kind == "glm4_moe":
        width = _said(reader, "attention.key_length")
        found["rope_parameters"]["partial_rotary_factor"] = _said(reader, "rope.dimension_count") / width
        names = {tensor.name for tensor in reader.tensors}
        found |= {"use_qk_norm": "blk.0.attn_q_norm.weight" in names, "attention_bias": "blk.0.attn_q.bias" in names}
    if _said(reader, "rope.scaling.type") == "yarn":
        found["rope_parameters"] = _yarn(reader, kind)
    return found


def _latent(reader: Any, kind: str) -> dict[str, Any]:
    rope = _said(reader, "rope.dimension_count")
    heads = _said(reader, "attention.head_count")
    # Files from before April 2025 say what others say of the heads under another name.
    key, value = (
        _said(reader, f"attention.{name}_mla") or _said(reader, f"attention.{name}")
        for name in ("key_length", "value_length")
    )
    found = {
        "num_key_value_heads": heads,
        "head_dim": rope,
        "qk_nope_head_dim": key - rope,
        "v_head_dim": value,
        "q_lora_rank": _said(reader, "attention.q_lora_rank"),
    }
    if kind == "deepseek_v2":
        found["topk_method"] = "greedy"
    return found


def _yarn(reader: Any, kind: str) -> dict[str, Any]:
    found = {
        "rope_type": "yarn",
        "rope_theta": _said(reader, "rope.freq_base") or 10_000.0,
        "factor": _said(reader, "rope.scaling.factor"),
        "original_max_position_embeddings": _said(reader, "rope.scaling.original_context_length"),
        "beta_fast": _FAST,
        "beta_slow": _SLOW,
    }
    if kind in LATENT:
        scale = 10 * (_said(reader, "rope.scaling.yarn_log_multiplier") or 0.0)
        found |= {"mscale": scale, "mscale_all_dim": scale}
    return found


def _said(reader: Any, key: str) -> Any:
    field = reader.get_field(f"{reader.get_field('general.architecture').contents()}.{key}")
    return None if field is None else field.contents()
