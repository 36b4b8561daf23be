"""Every kind of format comes back from its tensors as it was, and takes no more than it says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixprec.numerics.codebook import CodebookQuantized
from mixprec.numerics.formats import (
    GGML,
    KEEP,
    WHOLE_ROW,
    AffineFormat,
    AnyFormat,
    CodebookFormat,
    Drop,
    Format,
    GgmlFormat,
    Keep,
)
from mixprec.numerics.ggml import GgmlQuantized
from mixprec.numerics.groupwise import Grid, Quantized
from mixprec.numerics.plain import Plain
from mixprec.numerics.storage import (
    STORAGE,
    AnyQuantized,
    dequantize,
    from_tensors,
    restored,
    split,
    stored,
    to_tensors,
    unscaled,
)

GROUPS = st.one_of(st.just(WHOLE_ROW), st.integers(1, 40))
FORMATS: st.SearchStrategy[AnyFormat] = st.one_of(
    st.just(KEEP),
    st.builds(Format, st.integers(2, 8), GROUPS, st.booleans()),
    st.builds(CodebookFormat, st.integers(2, 4), GROUPS),
    st.builds(GgmlFormat, st.sampled_from(list(GGML))),
)
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32])


def drawn(format: AnyFormat, rows: int, columns: int, dtype: torch.dtype, seed: int) -> AnyQuantized:
    """Any weight that the format can hold, extremes among them."""
    generator = torch.Generator().manual_seed(seed)

    def whole(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator)

    def real(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    if isinstance(format, Keep):
        weight = real(rows, columns)
        weight[torch.rand(rows, columns, generator=generator) < seed / 9] = 0
        weight[0, 0] = -0.0
        return Plain(weight)
    if isinstance(format, GgmlFormat):
        return GgmlQuantized(whole(0, 255, rows, format.row_bytes(columns)).to(torch.uint8), format)
    groups = format.groups(columns)
    codes = whole(0, 2**format.bits - 1, rows, columns)
    if isinstance(format, CodebookFormat):
        book = real(rows, 2**format.bits).sort(1).values
        return CodebookQuantized(codes.to(torch.uint8), book, real(rows, groups), real(rows, groups))
    if format.symmetric:
        return Quantized((codes - 2 ** (format.bits - 1)).to(torch.int8), Grid(real(rows, groups).abs(), None))
    zeros = whole(0, 2**format.bits - 1, rows, groups).to(torch.uint8)
    return Quantized(codes.to(torch.uint8), Grid(real(rows, groups).abs(), zeros))


def same(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
    if isinstance(a, tuple) and isinstance(b, tuple):
        return type(a) is type(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@given(FORMATS, st.integers(1, 5), st.integers(1, 70), DTYPES, st.integers(0, 9))
def test_what_is_stored_comes_back(format: AnyFormat, rows: int, columns: int, dtype: torch.dtype, seed: int) -> None:
    columns = columns if not isinstance(format, GgmlFormat) else columns % 3 * 256 + 256
    quantized = drawn(format, rows, columns, dtype, seed)
    tensors = to_tensors(quantized, format)
    assert same(from_tensors(tensors, format, (rows, columns)), quantized)


@given(FORMATS, st.integers(1, 5), st.integers(1, 70), st.integers(0, 9), st.booleans())
def test_a_restored_weight_is_the_same_to_the_bit(
    format: AnyFormat, rows: int, columns: int, seed: int, scaled: bool
) -> None:
    columns = columns if not isinstance(format, GgmlFormat) else 256
    quantized = drawn(format, rows, columns, torch.bfloat16, seed)
    scale = torch.rand(columns) + 0.5 if scaled else None
    weight = unscaled(dequantize(quantized, format, torch.bfloat16), scale)
    found = restored(stored(quantized, format, scale), format, (rows, columns), torch.bfloat16)
    assert weight.shape == (rows, columns)
    assert same(found, weight)


@given(FORMATS, st.lists(st.integers(1, 4), min_size=1, max_size=3), DTYPES, st.integers(0, 9))
def test_stacked_weights_part_again(format: AnyFormat, rows: list[int], dtype: torch.dtype, seed: int) -> None:
    quantized = drawn(format, sum(rows), 256, dtype, seed)
    parts = [dequantize(part, format, torch.float32) for part in split(quantized, rows)]
    assert [len(part) for part in parts] == rows
    assert same(torch.cat(parts), dequantize(quantized, format, torch.float32))


@pytest.mark.parametrize(
    "format",
    [KEEP, Format(3, 64), Format(4, 128, symmetric=False), Format(2), CodebookFormat(3, 64), *map(GgmlFormat, GGML)],
    ids=str,
)
def test_tensors_take_the_bits_that_the_format_says(format: AnyFormat) -> None:
    rows, columns = 8, 1024
    weight = drawn(format, rows, columns, torch.bfloat16, 0)
    held = sum(tensor.nbytes for tensor in to_tensors(weight, format).values())
    assert 8 * held == sum(format.takes(rows, columns))


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9])
def test_zeros_take_one_bit_where_that_is_less(share: float) -> None:
    weight = torch.ones(64, 128, dtype=torch.bfloat16)
    weight.flatten()[: round(share * weight.numel())] = 0
    held = sum(tensor.nbytes for tensor in to_tensors(Plain(weight), KEEP).values())
    left = int(weight.count_nonzero())
    assert held == min(weight.nbytes, weight.numel() // 8 + 2 * left)


def test_every_kind_of_format_is_stored() -> None:
    assert {*STORAGE} - {Drop} == {Keep, Format, CodebookFormat, GgmlFormat, AffineFormat}
