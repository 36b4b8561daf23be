"""Packed modules read back by plain loops over bits, from the formats' specifications: nothing of mixprec is used."""

from __future__ import annotations

import numpy as np
import torch


def bits_of(words: np.ndarray, width: int, count: int) -> list[int]:
    """``count`` numbers of ``width`` bits from a stream of 32-bit words, lowest bits first."""
    stream = sum(int(word) % 2**32 << (32 * place) for place, word in enumerate(words))
    return [(stream >> (width * index)) % 2**width for index in range(count)]


def compressed_tensors(tensors: dict[str, torch.Tensor], bits: int, group: int | None) -> np.ndarray:
    """The weight (out, in) in float64; ``group`` None: one for each row."""
    rows, columns = (int(size) for size in tensors["weight_shape"])
    scales = tensors["weight_scale"].double().numpy()
    packed = tensors["weight_packed"].numpy()
    weight = np.zeros((rows, columns))
    zeros = np.full(scales.shape, 2 ** (bits - 1))
    if "weight_zero_point" in tensors:
        for column in range(scales.shape[1]):
            zeros[:, column] = bits_of(tensors["weight_zero_point"].numpy()[:, column], bits, rows)
    for row in range(rows):
        for column, code in enumerate(bits_of(packed[row], bits, columns)):
            place = column // (group or columns)
            weight[row, column] = (code - zeros[row, place]) * scales[row, place]
    return weight


def mlx(tensors: dict[str, torch.Tensor], bits: int, group: int) -> np.ndarray:
    """The weight (out, in) in float64: code · scale + bias (mlx/ops.cpp: affine_dequantize)."""
    scales, offsets = tensors["scales"].double().numpy(), tensors["biases"].double().numpy()
    packed = tensors["weight"].numpy()
    rows, columns = len(packed), group * scales.shape[1]
    weight = np.zeros((rows, columns))
    for row in range(rows):
        for column, code in enumerate(bits_of(packed[row], bits, columns)):
            block = column // group
            weight[row, column] = code * scales[row, block] + offsets[row, block]
    return weight


def awq(tensors: dict[str, torch.Tensor], group: int) -> np.ndarray:
    """The weight (out, in) in float64. From its lowest four bits on, a word holds the rows 0, 2, 4, 6, 1, 3, 5, 7 of
    eight (AutoAWQ, awq/modules/linear/gemm.py: order_map)."""
    codes, zeros, scales = tensors["qweight"].numpy(), tensors["qzeros"].numpy(), tensors["scales"].double().numpy()
    columns, rows = codes.shape[0], 8 * codes.shape[1]
    weight = np.zeros((rows, columns))
    for row in range(rows):
        word, place = divmod(row, 8)
        shift = 4 * (place // 2 + 4 * (place % 2))
        for column in range(columns):
            block = column // group
            code, zero = (int(words[at, word]) >> shift & 15 for words, at in ((codes, column), (zeros, block)))
            weight[row, column] = scales[block, row] * (code - zero)
    return weight


def gptq(tensors: dict[str, torch.Tensor], bits: int, added: int) -> np.ndarray:
    """The weight (out, in) in float64; ``added``: what readers add to zero points, 1 in the first layout."""
    scales, index = tensors["scales"].double().numpy(), tensors["g_idx"].numpy()
    rows, columns = scales.shape[1], len(index)
    zeros = [[zero + added for zero in bits_of(line, bits, rows)] for line in tensors["qzeros"].numpy()]
    weight = np.zeros((rows, columns))
    for row in range(rows):
        for column, code in enumerate(bits_of(tensors["qweight"].numpy()[:, row], bits, columns)):
            weight[row, column] = (code - zeros[index[column]][row]) * scales[index[column], row]
    return weight
