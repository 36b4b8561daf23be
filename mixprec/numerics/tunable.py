"""What may move in a compressed weight while its codes stay: scales, offsets, code books, llama.cpp's free scales.

Every kind of format is a row of TUNABLE. A weight's numbers are tuned as masters in float32, and rounded to the type
in which they are stored whenever the weight is computed, with the gradient passed straight through: what is measured
is what is written. For given codes a weight is linear in its scales, so its gradients are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from mixprec.numerics import ggml
from mixprec.numerics.affine import AffineQuantized
from mixprec.numerics.codebook import CodebookQuantized
from mixprec.numerics.formats import AffineFormat, CodebookFormat, Format, GgmlFormat, GridFormat
from mixprec.numerics.ggml import GgmlQuantized
from mixprec.numerics.groupwise import Grid, Quantized
from mixprec.numerics.storage import AnyQuantized


class Number(NamedTuple):
    """Numbers of one weight. ``start``: as they are stored, in the type in which they are. ``unit``, of a shape that
    spreads to theirs, float32: what a relative step of 1 is. ``limits``: the least and the greatest that they may be,
    all of them or each.
    """

    start: Tensor
    unit: Tensor
    limits: tuple[float, float] | tuple[Tensor, Tensor]

    def stored(self, master: Tensor) -> Tensor:
        """``master`` (start's shape, float32) within its limits and rounded to the stored type; gradients pass as if it
        were not."""
        with torch.no_grad():
            inside = master.clamp(*self.limits)
            whole = inside if self.start.is_floating_point() else inside.round()
            rounded = whole.to(self.start.dtype).to(master.dtype)
        return rounded + (master - master.detach())


class Tunable(NamedTuple):
    """How one kind of format is tuned.

    ``numbers``: (quantized, format) -> what may move, by name; empty where nothing may. ``fixed``: (quantized, format)
    -> the tensors that stay. ``weight``: (fixed, stored numbers, type) -> the weight (out, in), rounded once to the
    type, computed in that of the numbers and differentiable in them. ``put``: (quantized, numbers as they are stored)
    -> quantized with these.
    """

    numbers: Callable[[Any, Any], dict[str, Number]]
    fixed: Callable[[Any, Any], dict[str, Tensor]]
    weight: Callable[[Mapping[str, Tensor], Mapping[str, Tensor], torch.dtype], Tensor]
    put: Callable[[Any, Mapping[str, Tensor]], AnyQuantized]


def _range(kind: torch.dtype) -> tuple[float, float]:
    return torch.finfo(kind).min, torch.finfo(kind).max


def _of_its_sign(scales: Tensor) -> tuple[Tensor, Tensor]:
    """No scale becomes 0 or turns its codes around."""
    least, most = (torch.full_like(scales, end, dtype=torch.float32) for end in _positive(scales.dtype))
    return torch.where(scales > 0, least, -most), torch.where(scales > 0, most, -least)


def _positive(kind: torch.dtype) -> tuple[float, float]:
    return torch.finfo(kind).tiny, torch.finfo(kind).max


# Grids of integers: scale · (code − zero point)

#: A zero point moves by whole steps: what a relative step of 1 is to others is to be about a hundred times as much.
_ZERO_STEP = 5.0


def _grid_numbers(quantized: Quantized, format: Format) -> dict[str, Number]:
    scales, zeros = quantized.grid
    found = {"scales": Number(scales, scales.float().abs(), _of_its_sign(scales))}
    if zeros is not None:
        found["zeros"] = Number(
            zeros, torch.full_like(scales, _ZERO_STEP, dtype=torch.float32), (0, 2**format.bits - 1)
        )
    return found


def _grid_fixed(quantized: Quantized, format: Format) -> dict[str, Tensor]:
    return {"codes": quantized.codes} | _columns(quantized.codes, format)


def _grid_weight(fixed: Mapping[str, Tensor], numbers: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    scales, zeros = numbers["scales"], numbers.get("zeros")
    steps = fixed["codes"].to(scales.dtype)
    if zeros is not None:
        steps = _by_group(torch.sub, steps, zeros, fixed)
    return _by_group(torch.mul, steps, scales, fixed).to(dtype)


def _grid_put(quantized: Quantized, numbers: Mapping[str, Tensor]) -> Quantized:
    return quantized._replace(grid=Grid(numbers["scales"], numbers.get("zeros")))


# Grids with offsets: scale · code + offset


def _affine_numbers(quantized: AffineQuantized, format: AffineFormat) -> dict[str, Number]:
    _, scales, offsets = quantized
    # An offset moves as far as the middle of the codes does with the scale.
    middle = scales.float().abs() * (2 ** (format.bits - 1))
    return {
        "scales": Number(scales, scales.float().abs(), _range(scales.dtype)),
        "offsets": Number(offsets, middle, _range(offsets.dtype)),
    }


def _affine_fixed(quantized: AffineQuantized, format: AffineFormat) -> dict[str, Tensor]:
    return {"codes": quantized.codes} | _columns(quantized.codes, format)


def _affine_weight(fixed: Mapping[str, Tensor], numbers: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    steps = fixed["codes"].to(numbers["scales"].dtype)
    scaled = _by_group(torch.mul, steps, numbers["scales"], fixed)
    return _by_group(torch.add, scaled, numbers["offsets"], fixed).to(dtype)


def _affine_put(quantized: AffineQuantized, numbers: Mapping[str, Tensor]) -> AffineQuantized:
    return quantized._replace(**numbers)


# Code books: scale · book[code] + offset


def _book_numbers(quantized: CodebookQuantized, format: CodebookFormat) -> dict[str, Number]:
    book, scales, offsets = quantized.codebook, quantized.scales, quantized.offsets
    entry = book.float().abs().mean(1, keepdim=True)
    return {
        "codebook": Number(book, entry, _range(book.dtype)),
        "scales": Number(scales, scales.float(), _range(scales.dtype)),
        "offsets": Number(offsets, scales.float().abs() * entry, _range(offsets.dtype)),
    }


def _book_fixed(quantized: CodebookQuantized, format: CodebookFormat) -> dict[str, Tensor]:
    return {"codes": quantized.codes} | _columns(quantized.codes, format)


def _book_weight(fixed: Mapping[str, Tensor], numbers: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    values = numbers["codebook"].gather(1, fixed["codes"].long())
    scaled = _by_group(torch.mul, values, numbers["scales"], fixed)
    return _by_group(torch.add, scaled, numbers["offsets"], fixed).to(dtype)


def _book_put(quantized: CodebookQuantized, numbers: Mapping[str, Tensor]) -> CodebookQuantized:
    return quantized._replace(**numbers)


# llama.cpp: a weight is linear in the free scales of its block, whatever else the block holds


def _ggml_numbers(quantized: GgmlQuantized, format: GgmlFormat) -> dict[str, Number]:
    free = ggml.free_scales(quantized)
    found = {}
    for name, scales in free.items():
        # Where a minimum is 0, the scale beside it says what is much.
        unit = torch.where(scales == 0, free["d"], scales).float().abs()
        found[name] = Number(scales, unit, _range(scales.dtype))
    return found


def _ggml_fixed(quantized: GgmlQuantized, format: GgmlFormat) -> dict[str, Tensor]:
    free = ggml.free_scales(quantized)
    found = {}
    for name in free:
        alone = {other: torch.full_like(scales, float(other == name)) for other, scales in free.items()}
        found[name] = ggml.dequantize_ggml(ggml.with_free_scales(quantized, alone), torch.float32)
    return found


def _ggml_weight(fixed: Mapping[str, Tensor], numbers: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    parts = [_by_group(torch.mul, fixed[name], scales, fixed) for name, scales in numbers.items()]
    return (parts[0] if len(parts) == 1 else parts[0] + parts[1]).to(dtype)


def _ggml_put(quantized: GgmlQuantized, numbers: Mapping[str, Tensor]) -> GgmlQuantized:
    return ggml.with_free_scales(quantized, numbers)


TUNABLE: Final[Mapping[type, Tunable]] = {
    Format: Tunable(_grid_numbers, _grid_fixed, _grid_weight, _grid_put),
    AffineFormat: Tunable(_affine_numbers, _affine_fixed, _affine_weight, _affine_put),
    CodebookFormat: Tunable(_book_numbers, _book_fixed, _book_weight, _book_put),
    GgmlFormat: Tunable(_ggml_numbers, _ggml_fixed, _ggml_weight, _ggml_put),
}


def as_it_is(tensor: Tensor) -> Number:
    """A parameter that stands for itself, such as a norm's weight: steps are relative to the mean of its sizes."""
    unit = tensor.float().abs().mean().clamp(min=torch.finfo(torch.float32).tiny)
    return Number(tensor, unit, _range(tensor.dtype))


def _columns(codes: Tensor, format: GridFormat | CodebookFormat) -> dict[str, Tensor]:
    """The group of each column (in,) of ``codes`` (out, in), where the last group is smaller than the others; else
    nothing."""
    width, size = codes.shape[1], format.width(codes.shape[1])
    if width % size == 0:
        return {}
    return {"group": torch.arange(width, device=codes.device).div(size, rounding_mode="floor")}


def _by_group(
    operation: Callable[[Tensor, Tensor], Tensor], values: Tensor, numbers: Tensor, fixed: Mapping[str, Tensor]
) -> Tensor:
    """``operation`` of ``values`` (out, in) and the number (out, groups) of each one's group."""
    if "group" in fixed:
        return operation(values, numbers[:, fixed["group"]])
    return operation(values.view(*numbers.shape, -1), numbers[..., None]).view(values.shape)
