"""Weights that no format holds: kept as they are, or with zeros among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mixprec.numerics import packing
from mixprec.numerics.formats import Drop, Keep

#: Bytes of a number -> the integer of as many.
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Plain(NamedTuple):
    """``weight`` (out, in), in the type in which it is stored."""

    weight: Tensor


def dequantize(plain: Plain, format: Keep | Drop, dtype: torch.dtype) -> Tensor:
    """The weight in ``dtype``."""
    return plain.weight.to(dtype)


def to_tensors(plain: Plain, format: Keep | Drop) -> dict[str, Tensor]:
    """The weight, or, where that is less, its numbers that are not zero and a bit for each that says which they are."""
    weight = plain.weight.contiguous()
    there = (weight.view(_INTEGERS[weight.itemsize]) != 0).flatten()  # by its bits: -0.0 stays what it is
    if 8 * weight.itemsize * int((~there).sum()) <= there.numel():
        return {"weight": weight}
    return {"there": packing.pack(there[None], 1), "numbers": weight.flatten()[there]}


def from_tensors(tensors: Mapping[str, Tensor], format: Keep | Drop, shape: tuple[int, int]) -> Plain:
    """The inverse of ``to_tensors``, for a weight of this shape."""
    if "weight" in tensors:
        return Plain(tensors["weight"])
    numbers = tensors["numbers"]
    there = packing.unpack(tensors["there"], 1, shape[0] * shape[1])[0].bool()
    weight = torch.zeros(len(there), dtype=numbers.dtype, device=numbers.device)
    weight[there] = numbers
    return Plain(weight.view(shape))
