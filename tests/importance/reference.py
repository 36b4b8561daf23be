"""Independent references: full backpropagation over the whole prefix, one window at a time, and tiny decoders."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from mixprec.importance.engine import Layout
from mixprec.importance.windows import Window

TINY = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 7, "head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0},
    "gemma3_text": {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
}


def tiny_model(architecture: str, dtype: torch.dtype = torch.float64) -> Any:
    """A random decoder of 3 layers, hidden size 32, 4 heads on 2 key/value heads, 61 words."""
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        architecture,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=61,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **TINY[architecture],
    )
    # Eager attention has a float32 softmax even in a float64 model; only soft-capping needs it.
    config._attn_implementation = "eager" if architecture == "gemma2" else "sdpa"
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    if dtype == torch.float64:
        _use_exact_norms(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        # Random initial weights are so small that attention hardly matters; make it matter.
        if parameter.dim() == 2:
            parameter.mul_(6.0)
    return model


class _ExactNorm(nn.Module):
    """RMSNorm in the input's own dtype: transformers' goes through float32, which would hide errors below 1e-7."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.eps = getattr(norm, "variance_epsilon", None) or norm.eps
        self.weight = nn.Parameter(norm.weight.data + float("Gemma" in type(norm).__name__))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


def _use_exact_norms(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _ExactNorm(module))


def full_backpropagation(model: Any, layout: Layout, tokens: Tensor, window: Window) -> Tensor:
    """(D,) gradient of the window's mean cross-entropy, mean over its positions, through the whole prefix."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        output.retain_grad()
        outputs[name] = output

    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: keep(name, output))
        for name, module in layout.modules.items()
    ]
    embedded = model.get_input_embeddings()(tokens[None, : window.end]).requires_grad_()
    scores = model(inputs_embeds=embedded).logits[0]
    for handle in handles:
        handle.remove()
    first = max(window.start, 1)
    F.cross_entropy(scores[first - 1 : window.end - 1], tokens[first : window.end]).backward()
    return torch.cat([outputs[name].grad[0, window.start : window.end].mean(0) for name in layout.modules])


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """Largest difference over the reference's largest value."""
    return float((ours - reference).abs().max() / reference.abs().max())
