"""Latent attention (DeepSeek-V2 and V3) as llama.cpp has it: the matrix that makes keys and values of what both share,
``kv_b_proj``, is two tensors there, per head and that of the keys transposed, so that it goes to the queries.

Transposed rows are no rows of the matrix: what is packed is unpacked into float16. Files from before April 2025 have
one tensor, ``attn_kv_b``, which is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import gguf
import numpy as np

if TYPE_CHECKING:  # headers are read without torch
    from torch import Tensor

KEYS_AND_VALUES: Final = ".attn_kv_b.weight"
_KEYS, _VALUES = ".attn_k_b.weight", ".attn_v_b.weight"
_F16: Final = gguf.GGMLQuantizationType.F16
#: Types that need no unpacking.
_FLOATS: Final = (_F16, gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.F32)


class Half(NamedTuple):
    """One of the two: its name, shape in weights, type, and its rows."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    load: Callable[[], Tensor]


def halves(
    name: str, kind: gguf.GGMLQuantizationType, rank: int, load: Callable[[], Tensor], config: Any
) -> Iterator[Half]:
    """The two tensors of ``name``, ``attn_kv_b`` in GGUF, whose rows ``load`` gives: (heads * (nope + v), …) weights or
    packed bytes of ``kind``. ``rank``: width of what keys and values share."""
    heads, nope, width = config.num_attention_heads, config.qk_nope_head_dim, config.v_head_dim
    start = name.removesuffix(KEYS_AND_VALUES)
    unpacked = kind if kind in _FLOATS else _F16

    def per_head(rows: Tensor) -> Tensor:
        return rows.reshape(heads, nope + width, -1)

    def keys() -> Tensor:
        import torch

        rows = load()
        if kind not in _FLOATS:
            rows = torch.from_numpy(np.asarray(gguf.quants.dequantize(rows.numpy(), kind), np.float16))
        return per_head(rows)[:, :nope].transpose(1, 2)

    yield Half(start + _KEYS, (heads, rank, nope), unpacked, keys)
    yield Half(start + _VALUES, (heads, width, rank), kind, lambda: per_head(load())[:, nope:])


def whole_name(name: str) -> str:
    """The name in GGUF of the matrix that a tensor is a half of; any other name as it is."""
    for half in (_KEYS, _VALUES):
        if name.endswith(half):
            return name.removesuffix(half) + KEYS_AND_VALUES
    return name


def joined(keys: Tensor, values: Tensor) -> Tensor:
    """(heads * (nope + v), rank) of the two, (heads, rank, nope) and (heads, v, rank)."""
    import torch

    both = torch.cat((keys.transpose(1, 2), values), 1)
    return both.reshape(-1, both.shape[-1])
