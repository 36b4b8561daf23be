"""Integer grids in llama.cpp's blocks: gguf, which reads them, finds the very same weights."""

from __future__ import annotations

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixprec.numerics import formats
from mixprec.numerics.formats import GGML, KEEP, Format, GgmlFormat, fitting, parse_format
from mixprec.numerics.ggml import dequantize_ggml, exact_type, from_grid, ggml_type
from mixprec.numerics.groupwise import Grid, Quantized, dequantize, quantize


@pytest.mark.parametrize("name", GGML)
def test_layouts_are_those_of_gguf(name: str) -> None:
    layout = GGML[name]
    assert (layout.block, layout.bytes) == gguf.GGML_QUANT_SIZES[ggml_type(name)]
    assert layout.code_bits < layout.bytes * 8
    assert parse_format(name) == GgmlFormat(name)
    assert str(GgmlFormat(name)) == name


def test_effective_bits_of_known_types() -> None:
    known = {"q4_0": 4.5, "q2_k": 2.625, "q6_k": 6.5625, "iq1_s": 1.5625, "iq2_xxs": 2.0625, "tq1_0": 1.6875}
    assert {name: GgmlFormat(name).effective_bits for name in known} == known


@pytest.mark.parametrize(
    ("name", "columns", "expected"),
    [
        ("q2_k", 1536, "q2_k"), ("q2_k", 576, "iq4_nl"), ("q4_k", 576, "q5_0"), ("q5_k", 576, "q5_1"),
        ("q6_k", 576, "q8_0"), ("tq1_0", 96, "q4_0"), ("iq1_s", 96, "iq4_nl"), ("q4_k", 100, "keep"),
        ("q4_0", 48, "keep"), ("q8_0", 64, "q8_0"),
    ],
)  # fmt: skip
def test_fallbacks_are_those_of_llama_cpp(name: str, columns: int, expected: str) -> None:
    assert str(fitting(GgmlFormat(name), columns)) == expected


def test_every_large_type_falls_back_to_one_with_small_blocks() -> None:
    for name, layout in GGML.items():
        if layout.block > 32:
            other = fitting(GgmlFormat(name), 32)
            assert other != KEEP
    assert set(formats._FALLBACKS) == {name for name, layout in GGML.items() if layout.block > 32}


EXACT = [
    ("w4g32", 64, "q4_0"), ("w3g64", 64, "q4_0"), ("w2g32", 96, "q4_0"), ("w4", 64, "q4_0"), ("w4g128", 96, "q4_0"),
    ("w4g32_asym", 64, "q5_0"), ("w3g32_asym", 64, "q4_0"), ("w2g32_asym", 64, "q4_0"), ("w5g32", 64, "q5_0"),
    ("w6g32", 64, "q8_0"), ("w8g32", 64, "q8_0"), ("w7g64_asym", 64, "q8_0"), ("w5g64_asym", 64, "q8_0"),
    ("w2g256", 512, "q2_k"), ("w2g256_asym", 512, "q2_k"), ("w2", 256, "q2_k"), ("w3", 512, "q3_k"),
    ("w3g256", 512, "q3_k"), ("w4g256_asym", 512, "q4_k"), ("w5g256_asym", 512, "q5_k"), ("w6g256", 512, "q6_k"),
    ("w6_asym", 512, "q8_0"), ("w3g512_asym", 512, "q4_0"), ("w5g256", 512, "q5_0"),
    ("w4g16", 64, None), ("w4g48", 96, None), ("w8g32_asym", 64, None), ("w4", 40, None), ("w3g64", 100, None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "columns", "expected"), EXACT)
def test_the_type_that_holds_a_format(text: str, columns: int, expected: str | None) -> None:
    format = parse_format(text)
    assert isinstance(format, Format)
    found = exact_type(format, columns)
    assert (None if found is None else str(found)) == expected


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([row for row in EXACT if row[2]]),
    st.integers(0, 2**31),
    st.sampled_from([torch.float16, torch.bfloat16]),
)
def test_grids_are_held_without_loss(row: tuple[str, int, str], seed: int, scales: torch.dtype) -> None:
    text, columns, _ = row
    format = parse_format(text)
    assert isinstance(format, Format)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, columns, generator=generator) * 0.05 + 0.02 * torch.randn(3, 1, generator=generator)
    weight[0, :32] = 0
    quantized = quantize(weight, format, scales)
    kind = exact_type(format, columns)
    assert kind is not None
    held = from_grid(quantized, format, kind)
    assert held is not None
    assert held.data.shape == (3, kind.row_bytes(columns))
    assert torch.equal(dequantize_ggml(held, torch.float32), dequantize(quantized, format, torch.float32))


def test_every_code_of_every_exact_type() -> None:
    """All codes and zero points there are, not only those that random weights lead to."""
    for text, columns, name in EXACT:
        format = parse_format(text)
        if name is None:
            continue
        assert isinstance(format, Format)
        low = -(2 ** (format.bits - 1)) if format.symmetric else 0
        codes = (torch.arange(4 * columns).reshape(4, columns) % 2**format.bits + low).to(torch.int16)
        codes = codes.to(torch.int8 if format.symmetric else torch.uint8)
        shape = (4, format.groups(columns))
        scales = torch.linspace(0.5, 2, 4 * shape[1]).reshape(shape).half()
        zeros = None if format.symmetric else (torch.arange(scales.numel()).reshape(shape) * 5 % 2**format.bits).byte()
        quantized = Quantized(codes, Grid(scales, zeros))
        held = from_grid(quantized, format, GgmlFormat(name))
        assert held is not None
        assert torch.equal(dequantize_ggml(held, torch.float32), dequantize(quantized, format, torch.float32)), text


def test_a_scale_that_float16_has_not() -> None:
    format = Format(4, 32)
    codes = torch.ones(1, 32, dtype=torch.int8)
    huge = Quantized(codes, Grid(torch.tensor([[1e6]], dtype=torch.bfloat16), None))
    assert from_grid(huge, format, GgmlFormat("q4_0")) is None
    tiny = Quantized(codes, Grid(torch.tensor([[1e-7]], dtype=torch.bfloat16), None))
    held = from_grid(tiny, format, GgmlFormat("q4_0"))
    assert held is not None
    assert (dequantize_ggml(held, torch.float32) - 1e-7).abs().max() <= 2**-25
