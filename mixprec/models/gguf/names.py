"""What llama.cpp calls a tensor, and how it wants its rows and values.

Llama's rotary embedding turns pairs of neighbours in llama.cpp, halves of a head in transformers: the rows of q and k
are reordered within each head. Rows keep their bytes, so packed rows are reordered like any others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import gguf

from mixprec.models.arch import FAMILIES
from mixprec.models.decoder import decoder_of
from mixprec.models.labels import parse_address

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
}
#: Of a file with Llama 3's scaling: what each rotary frequency is divided by.
ROPE_TENSOR: Final = "rope_freqs.weight"
#: Architectures whose q and k are reordered.
_NEIGHBOURS: Final = ("llama", "mistral")


def gguf_names(config: PretrainedConfig) -> dict[str, str]:
    """Name in a transformers checkpoint -> name in GGUF, of every tensor that such a model can have, in order."""
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
    """``values`` of the tensor ``name`` (transformers') as llama.cpp wants them; ``back``: as transformers does.

    Norms that multiply by 1 + w hold that sum in llama.cpp.
    """
    offset = FAMILIES[config.model_type].offset
    if not offset or not name.endswith("norm.weight"):
        return values
    return values - offset if back else values + offset


def reordered(name: str, rows: Tensor, config: PretrainedConfig, *, back: bool = False) -> Tensor:
    """``rows`` (out, …) of the tensor ``name`` (transformers') in llama.cpp's order; ``back``: in transformers'."""
    _, kind = parse_address(name.rpartition(".")[0])
    count = {"q": config.num_attention_heads, "k": config.num_key_value_heads}.get(kind)
    if count is None or config.model_type not in _NEIGHBOURS:
        return rows
    half = len(rows) // count // 2
    split = rows.reshape(count, *((half, 2) if back else (2, half)), *rows.shape[1:])
    return split.transpose(1, 2).reshape(rows.shape)
