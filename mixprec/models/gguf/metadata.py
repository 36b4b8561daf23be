"""A model's configuration as GGUF has it: sizes, heads, norms, rotary embedding."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import gguf
import torch
from transformers import PretrainedConfig

from mixprec.models.gguf import mixtures
from mixprec.models.gguf.names import ARCHITECTURES, LATENT, MIXTURES, ROPE_TENSOR

_ROPES = ("default", "linear", "llama3")
#: What llama.cpp computes Gemma 3 with: every sixth layer attends to everything, the others turn by this base.
_PERIOD, _SLIDING_BASE = 6, 10_000
#: It knows Gemma 2 and 3 27B, whose attention is scaled in another way, by their layers.
_LAYERS_27B = {"gemma2": 46, "gemma3_text": 62}
#: Llama 3's scaling of rotary frequencies but for its factor, the same from 3.1 to 3.3.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def problem(config: PretrainedConfig) -> str | None:
    """Why no GGUF file of this model can be written, or None."""
    if config.model_type not in ARCHITECTURES:
        return f"GGUF files are written of {', '.join(ARCHITECTURES)}, this is {config.model_type}"
    kind = rope_type(config)
    if kind not in _ROPES and not (kind == "yarn" and config.model_type in (*LATENT, "gpt_oss")):
        return f"rotary embeddings are written as {', '.join(_ROPES)}, this model's are {kind}"
    if _rope(config).get("partial_rotary_factor", 1.0) != 1.0 and config.model_type != "glm4_moe":
        return "rotary embeddings over a part of each head are not written"
    gemma = config.model_type == "gemma3_text"
    activation = config.hidden_activation if gemma else getattr(config, "hidden_act", "silu")
    wanted = "gelu_pytorch_tanh" if gemma else "silu"
    if activation != wanted:
        return f"llama.cpp computes {config.model_type} with {wanted}, this model has {activation}"
    if gemma:
        return _gemma_problem(config)
    if config.model_type == "gpt_oss":
        return mixtures.problem(config)
    windows = set(getattr(config, "layer_types", None) or ["full_attention"])
    if windows != {"full_attention"} or _window(config):
        return "sliding windows are not written: llama.cpp would attend to everything"
    if getattr(config, "mlp_bias", False):
        return "biases of the MLP are not written"
    return mixtures.problem(config) if config.model_type in MIXTURES else None


def _gemma_problem(config: PretrainedConfig) -> str | None:
    """Where Gemma 3 is not what llama.cpp takes for granted."""
    layers = range(1, config.num_hidden_layers + 1)
    if config.layer_types != [f"{'sliding' if layer % _PERIOD else 'full'}_attention" for layer in layers]:
        return f"llama.cpp lets every {_PERIOD}th layer attend to everything, this model others"
    sliding = config.rope_parameters["sliding_attention"]
    if sliding != {"rope_type": "default", "rope_theta": _SLIDING_BASE}:
        return f"llama.cpp turns within sliding windows by base {_SLIDING_BASE}, this model has {sliding}"
    width = _attention_scalar(config)
    if config.query_pre_attn_scalar != width:
        return f"query_pre_attn_scalar: llama.cpp computes with {width}, this model has {config.query_pre_attn_scalar}"
    for key in ("attention_bias", "attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
        if getattr(config, key, None):
            return f"{key}: llama.cpp's Gemma 3 has none"
    return None


def _attention_scalar(config: PretrainedConfig) -> int:
    """What llama.cpp divides Gemma's attention by, squared."""
    if config.num_hidden_layers == _LAYERS_27B[config.model_type]:
        return int(config.hidden_size // config.num_attention_heads)
    return head_dim(config)


def complete(config: PretrainedConfig, reader: Any) -> None:
    """Give ``config``, as transformers makes it of a file's metadata, what it leaves out: heads' widths, Gemma's
    attention and scaled rotary embeddings, as llama.cpp computes them."""
    width = _said(reader, "attention.key_length")
    if width is not None and hasattr(config, "head_dim"):
        config.head_dim = int(width)
    if config.model_type in _LAYERS_27B:
        config.query_pre_attn_scalar = _attention_scalar(config)
    scaled, factors = scaling(reader), rope_tensor(reader)
    if scaled.kind == "linear":
        _rope(config).update(rope_type="linear", factor=scaled.factor)
    elif factors is not None and factors.max() > 1:
        _rope(config).update(rope_type="llama3", factor=float(factors.max()), **_LLAMA3)


class Scaling(NamedTuple):
    """How all rotary frequencies are scaled, and what they are divided by."""

    kind: str
    factor: float

    def __str__(self) -> str:
        return self.kind if self.kind == "none" else f"{self.kind} by {self.factor:g}"


def scaling(reader: Any) -> Scaling:
    """What a file's metadata say; llama.cpp takes a factor alone for linear."""
    factor = _said(reader, "rope.scaling.factor") or _said(reader, "rope.scale_linear") or 1.0
    kind = str(_said(reader, "rope.scaling.type") or "linear")
    return Scaling("none", 1.0) if kind == "none" or (kind, factor) == ("linear", 1.0) else Scaling(kind, factor)


def scaling_of(config: PretrainedConfig) -> Scaling:
    """What the metadata of a file with this configuration have to say: Llama 3's scaling is in a tensor."""
    kind = rope_type(config)
    return Scaling(kind, _rope(config)["factor"]) if kind in ("linear", "yarn") else Scaling("none", 1.0)


def rope_tensor(reader: Any) -> Any:
    """(head_dim / 2,) float32 of a file: what each rotary frequency is divided by besides; None where it has none."""
    return next((tensor.data for tensor in reader.tensors if tensor.name == ROPE_TENSOR), None)


def _said(reader: Any, key: str) -> Any:
    field = reader.get_field(f"{reader.get_field('general.architecture').contents()}.{key}")
    return None if field is None else field.contents()


def add(writer: gguf.GGUFWriter, config: PretrainedConfig, name: str) -> None:
    """Put all of it into ``writer``; ``name``: what people call the model."""
    rope = _rope(config)
    head = head_dim(config)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type in LATENT:
        mixtures.add_attention(writer, config)
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(head)
        writer.add_value_length(head)
        writer.add_rope_dimension_count(int(head * rope.get("partial_rotary_factor", 1.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(rope["rope_theta"])
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)
    if rope_type(config) == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if config.model_type in MIXTURES:
        mixtures.add(writer, config)


def head_dim(config: PretrainedConfig) -> int:
    """Width of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def rope_factors(config: PretrainedConfig) -> torch.Tensor | None:
    """(head_dim / 2,) float32: what llama.cpp divides each rotary frequency by, for Llama 3's scaling; None otherwise.

    Long wavelengths are stretched by ``factor``, short ones stay, those between are mixed (Llama 3.1's reference code).
    """
    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    dim, base, factor = head_dim(config), rope["rope_theta"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    context = rope["original_max_position_embeddings"]
    wavelengths: torch.Tensor = 2 * math.pi * base ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    share = ((context / wavelengths - low) / (high - low)).clamp(0, 1)  # 0: long, stretched; 1: short
    factors: torch.Tensor = 1 / (share + (1 - share) / factor)
    return factors.float()


def rope_type(config: PretrainedConfig) -> str:
    """How rotary frequencies are scaled; ``default``: not at all."""
    return str(_rope(config).get("rope_type", "default"))


def _rope(config: PretrainedConfig) -> dict[str, Any]:
    """Of the layers that attend to everything, where others have another."""
    found: dict[str, Any] = config.rope_parameters.get("full_attention", config.rope_parameters)
    return found


def _window(config: PretrainedConfig) -> bool:
    """Whether attention is cut off; Qwen's configurations have a window that is not used."""
    return bool(getattr(config, "sliding_window", None)) and bool(getattr(config, "use_sliding_window", True))
