"""What llama.cpp calls a tensor, and how it wants its rows and values.

Llama's rotary embedding turns pairs of neighbours in llama.cpp, halves of a head in transformers: the rows of q and k
are reordered within each head. Rows keep their bytes, so packed rows are reordered like any others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import gguf
from torch import Tensor
from transformers import PretrainedConfig

from mixprec import modules

#: model_type -> architecture in GGUF, of those whose files are tested against both readers.
ARCHITECTURES: Final = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
}
#: Architectures whose q and k are reordered.
_NEIGHBOURS: Final = ("llama", "mistral")
#: Architectures with norms behind attention and MLP too.
_FOUR_NORMS: Final = ("gemma3_text",)
#: Architectures whose norms multiply by 1 + w: llama.cpp wants that sum.
_SUMS: Final = ("gemma3_text",)


def gguf_names(config: PretrainedConfig) -> dict[str, str]:
    """Name in a transformers checkpoint -> name in GGUF, of every tensor that such a model can have, in order."""
    table = gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_hidden_layers)
    norms = modules.BLOCK_NORMS if config.model_type in _FOUR_NORMS else modules.BLOCK_NORMS[:2]
    parts = (*norms, *modules.KINDS.values(), "self_attn.q_norm", "self_attn.k_norm")
    blocks = [f"model.layers.{layer}.{part}" for layer in range(config.num_hidden_layers) for part in parts]
    found: dict[str, str] = {}
    for module in (modules.EMBEDDING, *blocks, modules.NORM, modules.HEAD):
        name = table.get_name(module)
        if name is not None:  # Llama has no norms within attention
            found |= {f"{module}.{kind}": f"{name}.{kind}" for kind in ("weight", "bias")}
    return found


def names_in(architecture: str, names: Iterable[str], layers: int) -> dict[str, str]:
    """Name in GGUF -> name in transformers, of the tensors ``names`` (transformers') of a GGUF ``architecture``."""
    kind = next(key for key, known in gguf.MODEL_ARCH_NAMES.items() if known == architecture)
    table = gguf.get_tensor_name_map(kind, layers)
    found = {}
    for name in names:
        module, _, part = name.rpartition(".")
        theirs = table.get_name(module)
        if theirs is not None:
            found[f"{theirs}.{part}"] = name
    return found


def shifted(name: str, values: Tensor, config: PretrainedConfig, *, back: bool = False) -> Tensor:
    """``values`` of the tensor ``name`` (transformers') as llama.cpp wants them; ``back``: as transformers does."""
    if config.model_type not in _SUMS or not name.endswith("norm.weight"):
        return values
    return values - 1 if back else values + 1


def reordered(name: str, rows: Tensor, config: PretrainedConfig, *, back: bool = False) -> Tensor:
    """``rows`` (out, …) of the tensor ``name`` (transformers') in llama.cpp's order; ``back``: in transformers'."""
    path = name.rpartition(".")[0]
    heads = {
        modules.KINDS["q"]: config.num_attention_heads,
        modules.KINDS["k"]: config.num_key_value_heads,
    }
    count = next((number for end, number in heads.items() if path.endswith(f".{end}")), None)
    if count is None or config.model_type not in _NEIGHBOURS:
        return rows
    half = len(rows) // count // 2
    split = rows.reshape(count, *((half, 2) if back else (2, half)), *rows.shape[1:])
    return split.transpose(1, 2).reshape(rows.shape)
