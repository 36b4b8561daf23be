from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from hypothesis import given
from hypothesis import strategies as st

from mixprec.numerics.packing import pack, unpack
from mixprec.numerics.words import words


def drawn(rows: int, count: int, bits: int, seed: int) -> torch.Tensor:
    return torch.randint(2**bits, (rows, count), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@given(st.integers(1, 4), st.integers(1, 100), st.integers(1, 8), st.integers(0, 9))
def test_codes_come_back(rows: int, count: int, bits: int, seed: int) -> None:
    codes = drawn(rows, count, bits, seed)
    packed = pack(codes, bits)
    assert packed.dtype == torch.int32
    assert packed.shape == (rows, words(count, bits))
    assert torch.equal(unpack(packed, bits, count), codes)


@given(st.integers(1, 3), st.integers(1, 70), st.integers(2, 8), st.integers(0, 9))
def test_words_are_those_of_compressed_tensors(rows: int, count: int, bits: int, seed: int) -> None:
    codes = drawn(rows, count, bits, seed)
    signed = (codes.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(pack(codes, bits), pack_to_int32(signed, bits))


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_row_is_one_stream_of_bits(bits: int) -> None:
    codes = drawn(1, 45, bits, seed=1)
    stream = sum(int(code) << (bits * place) for place, code in enumerate(codes[0]))
    found = [int(word) % 2**32 for word in pack(codes, bits)[0]]
    assert found == [(stream >> (32 * place)) % 2**32 for place in range(-(-45 * bits // 32))]


def test_transposed_codes() -> None:
    codes = drawn(40, 64, 3, seed=2)
    assert torch.equal(pack(codes.T, 3), pack(codes.T.contiguous(), 3))


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_single_row_that_was_a_column(bits: int) -> None:
    """Its strides are those of the column, and still count as contiguous: the zeros of one group per row."""
    column = (torch.arange(64) % 2**bits).to(torch.uint8)[:, None]
    assert torch.equal(unpack(pack(column.T, bits), bits, 64), column.T)
