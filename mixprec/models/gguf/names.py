"""What llama.cpp calls a tensor, and how it wants its rows and values.

Llama's rotary embedding turns pairs of neighbours in llama.cpp, halves of a head in transformers: the rows of q and k
are reordered within each head. Rows keep their bytes, so packed rows are reordered like any others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import gguf

from mixprec.models.arch import FAMILIES
from mixprec.models.labels import parse_address
from mixprec.models.maps import decoder_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

#: model_type -> architecture in GGUF, of those whose files are tested against both readers.
ARCHITECTURES: Final = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "qwen2_moe": gguf.MODEL_ARCH.QWEN2MOE,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "deepseek_v2": gguf.MODEL_ARCH.DEEPSEEK2,
    "deepseek_v3": gguf.MODEL_ARCH.DEEPSEEK2,
    "gpt_oss": gguf.MODEL_ARCH.GPT_OSS,
    "glm4_moe": gguf.MODEL_ARCH.GLM4_MOE,
}
#: Those of them that are mixtures of experts.
MIXTURES: Final = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss", "glm4_moe")
#: With latent attention: one matrix makes keys and values of what both share (models/gguf/latent.py).
LATENT: Final = ("deepseek_v2", "deepseek_v3")
#: Of a file with Llama 3's scaling: what each rotary frequency is divided by.
ROPE_TENSOR: Final = "rope_freqs.weight"
#: Architectures whose q and k are reordered.
_NEIGHBOURS: Final = ("llama", "mistral", "mixtral")
_EXPERT: Final = re.compile(r"(?<=\.experts)\.\d+(?=\.)")
#: What llama.cpp keeps in float32: what chooses experts, and weighs a shared one.
_ROUTERS: Final = (".ffn_gate_inp.weight", ".ffn_gate_inp_shexp.weight")


def is_router(name: str) -> bool:
    """Whether the tensor of this name in GGUF chooses experts."""
    return name.endswith(_ROUTERS)


def is_expert(name: str) -> bool:
    """Whether a tensor (transformers' name) is one of a layer's experts, which one tensor of GGUF holds together."""
    return _EXPERT.search(name) is not None


def wholes(config: PretrainedConfig) -> dict[str, tuple[str, ...]]:
    """Name in GGUF -> transformers' names of what it holds, in order: one tensor, or those of a layer's experts."""
    found: dict[str, list[str]] = {}
    for name, known in gguf_names(config).items():
        found.setdefault(known, []).append(name)
    return {known: tuple(names) for known, names in found.items()}


def gguf_names(config: PretrainedConfig) -> dict[str, str]:
    """Name in a transformers checkpoint -> name in GGUF, of every tensor that such a model can have, in order.

    All experts of a layer have one name there.
    """
    if config.model_type in MIXTURES:
        shapes = decoder_of(config).shapes
        return names_of_tensors(
            gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config.model_type]], shapes, config.num_hidden_layers
        )
    table = gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_hidden_layers)
    decoder = decoder_of(config)
    blocks = [
        f"{block.path}.{part}"
        for block in decoder.blocks
        for part in (*block.norms, *(linear.module for linear in block.linears), *block.head_norms)
    ]
    found: dict[str, str] = {}
    for module in (decoder.embedding, *blocks, decoder.norm, decoder.head):
        found |= {f"{module}.{kind}": f"{table.get_name(module)}.{kind}" for kind in ("weight", "bias")}
    return found


def names_of_tensors(architecture: str, names: Iterable[str], layers: int) -> dict[str, str]:
    """Name in transformers -> name in GGUF, of the tensors ``names`` of a GGUF ``architecture`` that it knows."""
    kind = next(key for key, known in gguf.MODEL_ARCH_NAMES.items() if known == architecture)
    table = gguf.get_tensor_name_map(kind, layers)
    found = {}
    for name in names:
        # Of a router's own bias the package's table has the name without this ending.
        module, _, part = _EXPERT.sub("", name).replace("_correction_bias", "_correction.bias").rpartition(".")
        theirs, whole = table.get_name(module), table.get_name(name)
        if theirs is not None:
            found[name] = f"{theirs}.{part}"
        elif whole is not None:  # a parameter that is no module's weight or bias, such as attention's sinks
            found[name] = f"{whole}.weight"
    return found


def shifted(name: str, values: Tensor, config: PretrainedConfig, *, back: bool = False) -> Tensor:
    """``values`` of the tensor ``name`` (transformers') as llama.cpp wants them; ``back``: as transformers does.

    Norms that multiply by 1 + w hold that sum in llama.cpp.
    """
    family = FAMILIES.get(config.model_type)
    offset = family.offset if family else 0.0
    if not offset or not name.endswith("norm.weight"):
        return values
    return values - offset if back else values + offset


def reordered(name: str, rows: Tensor, config: PretrainedConfig, *, back: bool = False) -> Tensor:
    """``rows`` (out, …) of the tensor ``name`` (transformers') in llama.cpp's order; ``back``: in transformers'."""
    if config.model_type not in _NEIGHBOURS:
        return rows
    _, kind = parse_address(name.rpartition(".")[0])
    count = {"q": config.num_attention_heads, "k": config.num_key_value_heads}.get(kind)
    if count is None:
        return rows
    half = len(rows) // count // 2
    split = rows.reshape(count, *((half, 2) if back else (2, half)), *rows.shape[1:])
    return split.transpose(1, 2).reshape(rows.shape)
