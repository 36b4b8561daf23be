"""llama.cpp's blocks as tensors: what they hold, and the integer grids that they hold exactly.

A block is a few bytes that stand for 32 or 256 weights of one row; ``gguf`` knows what each type's bytes mean. A grid
of numerics.groupwise, scale · (code − zero), fits a type without loss where that type can say "scale times a whole
number" for the same weights: codes within the type's range, groups made of whole blocks, scales in float16. The types
with scales of their own within a block (q2_k, q3_k, q4_k, q5_k, q6_k) do so with all of these at 1, for groups of whole
blocks of 256.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import gguf
import numpy as np
import torch
from torch import Tensor

from mixprec.numerics.formats import Format, GgmlFormat
from mixprec.numerics.groupwise import Quantized

#: Scales from here on are exact in float16 if they are in bfloat16; below, float16's steps are 2^-24.
_LEAST_NORMAL = 2.0**-14


class GgmlQuantized(NamedTuple):
    """``data`` (out, bytes of a row) uint8: rows as a GGUF file holds them, in the type ``format``."""

    data: Tensor
    format: GgmlFormat


class _Range(NamedTuple):
    """Whole numbers of steps that a type's codes reach."""

    low: int
    high: int


#: Types with one scale for 32 weights: what they reach around zero. Smallest first.
_SCALED: Final[dict[str, _Range]] = {"q4_0": _Range(-8, 7), "q5_0": _Range(-16, 15), "q8_0": _Range(-128, 127)}
#: Types with blocks of 256, all inner scales 1: symmetric ones, and ones with a minimum, which hold zero points.
_SUPER_SCALED: Final[dict[str, _Range]] = {"q3_k": _Range(-4, 3), "q6_k": _Range(-32, 31)}
_SUPER_OFFSET: Final[dict[str, int]] = {"q2_k": 2, "q4_k": 4, "q5_k": 5}


#: Type -> where a block has its free scales, in bytes: float16 numbers that all of its weights are linear in. iq1_m has
#: the bits of its scale spread over the block.
_FREE: Final[dict[str, dict[str, int]]] = {
    **{name: {"d": 0} for name in ("q4_0", "q5_0", "q8_0", "iq4_nl", "iq4_xs", "iq3_s", "iq3_xxs")},
    **{name: {"d": 0} for name in ("iq2_s", "iq2_xs", "iq2_xxs", "iq1_s")},
    **{name: {"d": 0, "min": 2} for name in ("q4_1", "q5_1", "q4_k", "q5_k")},
    "q2_k": {"d": 80, "min": 82},
    "q3_k": {"d": 108},
    "q6_k": {"d": 208},
    "tq1_0": {"d": 52},
    "tq2_0": {"d": 64},
}


def ggml_type(name: str) -> gguf.GGMLQuantizationType:
    """gguf's number of a type, by our name or in capitals."""
    return gguf.GGMLQuantizationType[name.upper()]


def dequantize_ggml(quantized: GgmlQuantized, dtype: torch.dtype) -> Tensor:
    """The weights (out, in) that the blocks stand for, computed in float32, rounded once to ``dtype``."""
    data = quantized.data.cpu().numpy()
    # torch would share numpy's memory, which may be read-only.
    values = np.ascontiguousarray(gguf.quants.dequantize(data, ggml_type(quantized.format.name)))
    return torch.from_numpy(values).to(quantized.data.device, dtype)


def free_scales(quantized: GgmlQuantized) -> dict[str, Tensor]:
    """The float16 numbers (out, blocks) that every weight of a block is linear in, by name: ``d``, of types with a
    minimum ``min`` too; empty for a type without any."""
    blocks = _blocks(quantized)
    places = _FREE.get(quantized.format.name, {})
    return {name: blocks[:, :, at : at + 2].contiguous().view(torch.float16)[..., 0] for name, at in places.items()}


def with_free_scales(quantized: GgmlQuantized, scales: Mapping[str, Tensor]) -> GgmlQuantized:
    """The same blocks with other free ``scales`` (out, blocks), all that ``free_scales`` names."""
    blocks = _blocks(quantized).clone()
    for name, at in _FREE.get(quantized.format.name, {}).items():
        blocks[:, :, at : at + 2] = scales[name].to(torch.float16)[..., None].contiguous().view(torch.uint8)
    return quantized._replace(data=blocks.view(quantized.data.shape))


def _blocks(quantized: GgmlQuantized) -> Tensor:
    """(out, blocks, bytes of a block)."""
    return quantized.data.view(len(quantized.data), -1, quantized.format.layout.bytes)


def exact_type(format: Format, columns: int) -> GgmlFormat | None:
    """The smallest type that holds every grid of ``format`` on rows of ``columns`` weights without loss, or None."""
    size = format.width(columns)
    if format.symmetric:
        needed = _Range(-(2 ** (format.bits - 1)), 2 ** (format.bits - 1) - 1)
    else:
        needed = _Range(1 - 2**format.bits, 2**format.bits - 1)
    found = [name for name, reach in _SCALED.items() if _holds(reach, needed)] if _whole(size, columns, 32) else []
    if _whole(size, columns, 256):
        found += [name for name, bits in _SUPER_OFFSET.items() if bits >= format.bits]
        found += [name for name, reach in _SUPER_SCALED.items() if _holds(reach, needed)]
    kinds = [GgmlFormat(name) for name in found]
    return min(kinds, key=lambda kind: kind.effective_bits) if kinds else None


def _holds(reach: _Range, needed: _Range) -> bool:
    return reach.low <= needed.low and needed.high <= reach.high


def _whole(size: int, columns: int, block: int) -> bool:
    return size % block == 0 and columns % block == 0


def from_grid(quantized: Quantized, format: Format, type: GgmlFormat) -> GgmlQuantized | None:
    """The same weights in ``type``, which is exact_type's for these rows; None where a scale is too large for float16.

    Scales below 2^-14, of groups whose weights a float16 checkpoint hardly tells from zero, may move by 2^-25.
    """
    codes, (scales, zeros) = quantized
    block = type.layout.block
    every = format.width(codes.shape[1]) // block
    per_block = scales.repeat_interleave(every, dim=1)[:, : codes.shape[1] // block].cpu()
    wide = per_block.float()
    half = wide.half()
    if torch.isinf(half).any() or ((half.float() != wide) & (wide >= _LEAST_NORMAL)).any():
        return None
    blocks = codes.cpu().reshape(len(codes), -1, block).to(torch.int16)
    if zeros is None:
        offsets = torch.full_like(per_block, 2 ** (format.bits - 1), dtype=torch.int16)
        blocks = blocks + offsets[..., None]
    else:
        offsets = zeros.cpu().repeat_interleave(every, dim=1)[:, : per_block.shape[1]].to(torch.int16)
    # Steps from the lowest code, and where zero lies among them.
    packed = _PACKERS[type.name](blocks.numpy(), offsets.numpy(), half.numpy())
    return GgmlQuantized(torch.from_numpy(packed.reshape(len(codes), -1)), type)


def _bytes(values: np.ndarray) -> np.ndarray:
    """(…,) float16 -> (…, 2) uint8."""
    split: np.ndarray = np.ascontiguousarray(values[..., None]).view(np.uint8)
    return split


def _nibbles(values: np.ndarray) -> np.ndarray:
    """(…, 2n) -> (…, n): the second half in the upper four bits."""
    half = values.shape[-1] // 2
    joined: np.ndarray = values[..., :half] | (values[..., half:] << 4)
    return joined.astype(np.uint8)


def _fifths(values: np.ndarray) -> np.ndarray:
    """Bit 4 of (…, n) values -> (…, n/8) bytes."""
    packed: np.ndarray = np.packbits((values >> 4) & 1, axis=-1, bitorder="little")
    return packed


def _pairs_of_bits(values: np.ndarray) -> np.ndarray:
    """(…, 4, 32) -> (…, 32): the two lowest bits of four values in a byte."""
    parts = [(values[..., j, :] & 3) << (2 * j) for j in range(4)]
    joined: np.ndarray = np.bitwise_or.reduce(parts)
    return joined.astype(np.uint8)


def _q4_0(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return np.concatenate([_bytes(scales), _nibbles(codes - zeros[..., None] + 8)], -1)


def _q5_0(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> np.ndarray:
    steps = codes - zeros[..., None] + 16
    return np.concatenate([_bytes(scales), _fifths(steps), _nibbles(steps & 15)], -1)


def _q8_0(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return np.concatenate([_bytes(scales), (codes - zeros[..., None]).astype(np.int8).view(np.uint8)], -1)


def _q2_k(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Value: d · 1 · code − dmin · zero, with dmin = d: 16 bytes of scale | minimum << 4, codes, d, dmin."""
    inner = np.repeat((1 | (zeros << 4)).astype(np.uint8)[..., None], 16, -1)
    # 128 weights share 32 bytes: weight 32 j + i of them lies in byte i at bit 2 j.
    packed = _pairs_of_bits(codes.reshape(*codes.shape[:-1], 2, 4, 32))
    return np.concatenate([inner, packed.reshape(*codes.shape[:-1], 64), _bytes(scales), _bytes(scales)], -1)


def _q3_k(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Value: d · (inner − 32) · (code − 4), inner 33: the third bits, the lower two, 12 bytes of inner scales, d."""
    steps = codes - zeros[..., None] + 4
    thirds = np.packbits(((steps >> 2) & 1).reshape(*codes.shape[:-1], 8, 32), axis=-2, bitorder="little")
    lower = _pairs_of_bits(steps.reshape(*codes.shape[:-1], 2, 4, 32))
    # 33 is 0b100001: its lower four bits twice in each of 8 bytes, its upper two four times in each of 4.
    inner = np.array([0x11] * 8 + [0b10101010] * 4, np.uint8)
    tiled = np.broadcast_to(inner, (*codes.shape[:-1], 12))
    shape = codes.shape[:-1]
    return np.concatenate([thirds.reshape(*shape, 32), lower.reshape(*shape, 64), tiled, _bytes(scales)], -1)


def _with_minimum(zeros: np.ndarray) -> np.ndarray:
    """12 bytes of q4_k and q5_k: eight inner scales of 1, eight minima of ``zeros``, 6 bits each."""
    ones = np.ones((*zeros.shape, 4), np.uint8)
    low = zeros.astype(np.uint8)[..., None]
    first = np.repeat((low & 63), 4, -1)
    last = np.repeat((1 | ((low & 15) << 4)).astype(np.uint8), 4, -1)
    # The upper two bits of the last four minima lie above the first four.
    return np.concatenate([ones, first | ((first >> 4) << 6), last], -1)


def _q4_k(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> np.ndarray:
    packed = _nibbles(codes.reshape(*codes.shape[:-1], 4, 64)).reshape(*codes.shape[:-1], 128)
    return np.concatenate([_bytes(scales), _bytes(scales), _with_minimum(zeros), packed], -1)


def _q5_k(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> np.ndarray:
    # Byte i of the fifth bits holds those of the weights i, 32 + i, …
    fifths = np.packbits(((codes >> 4) & 1).reshape(*codes.shape[:-1], 8, 32), axis=-2, bitorder="little")
    packed = _nibbles((codes & 15).reshape(*codes.shape[:-1], 4, 64)).reshape(*codes.shape[:-1], 128)
    upper = fifths.reshape(*codes.shape[:-1], 32)
    return np.concatenate([_bytes(scales), _bytes(scales), _with_minimum(zeros), upper, packed], -1)


def _q6_k(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Value: d · inner · (code − 32), inner 1: lower four bits, upper two, 16 inner scales, d."""
    shape = codes.shape[:-1]
    steps = (codes - zeros[..., None] + 32).reshape(*shape, 2, 4, 32)
    lower = steps & 15
    low = np.concatenate([lower[..., 0, :] | (lower[..., 2, :] << 4), lower[..., 1, :] | (lower[..., 3, :] << 4)], -1)
    high = _pairs_of_bits(steps >> 4)
    ones = np.ones((*shape, 16), np.uint8)
    return np.concatenate(
        [low.astype(np.uint8).reshape(*shape, 128), high.reshape(*shape, 64), ones, _bytes(scales)], -1
    )


_PACKERS = {
    "q4_0": _q4_0,
    "q5_0": _q5_0,
    "q8_0": _q8_0,
    "q2_k": _q2_k,
    "q3_k": _q3_k,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
}
