from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixprec.numerics import ggml, storage
from mixprec.numerics.codebook import CodebookQuantized
from mixprec.numerics.formats import GGML, AnyFormat, CodebookFormat, Format, GgmlFormat
from mixprec.numerics.ggml import GgmlQuantized
from mixprec.numerics.groupwise import quantize
from mixprec.numerics.storage import AnyQuantized
from mixprec.numerics.tunable import TUNABLE, Number, as_it_is

ROWS = 6
#: Their scales are spread over a block's bytes, and stay.
FIXED = {"iq1_m", "mxfp4"}


def grid(format: Format, columns: int, dtype: torch.dtype = torch.bfloat16) -> AnyQuantized:
    torch.manual_seed(0)
    return quantize(torch.randn(ROWS, columns).to(dtype), format)


def book(format: CodebookFormat, columns: int) -> CodebookQuantized:
    torch.manual_seed(0)
    groups = format.groups(columns)
    return CodebookQuantized(
        torch.randint(0, 2**format.bits, (ROWS, columns), dtype=torch.uint8),
        torch.randn(ROWS, 2**format.bits).sort(1).values.to(torch.bfloat16),
        torch.rand(ROWS, groups).to(torch.bfloat16),
        torch.randn(ROWS, groups).to(torch.bfloat16),
    )


def blocks(name: str, columns: int = 512) -> GgmlQuantized:
    """Random blocks with finite scales."""
    format = GgmlFormat(name)
    data = np.random.default_rng(0).integers(0, 256, (ROWS, format.row_bytes(columns)), dtype=np.uint8)
    plain = GgmlQuantized(torch.from_numpy(data), format)
    some = {
        key: torch.linspace(0.5, 2, scales.numel(), dtype=torch.float16).view(scales.shape)
        for key, scales in ggml.free_scales(plain).items()
    }
    return ggml.with_free_scales(plain, some)


CASES: list[tuple[AnyFormat, AnyQuantized]] = [
    (Format(3, 16), grid(Format(3, 16), 48)),
    (Format(3, 16), grid(Format(3, 16), 40)),  # a smaller last group
    (Format(2), grid(Format(2), 48, torch.float16)),
    (Format(4, 16, symmetric=False), grid(Format(4, 16, symmetric=False), 48)),
    (CodebookFormat(3, 16), book(CodebookFormat(3, 16), 48)),
    (CodebookFormat(3, 16), book(CodebookFormat(3, 16), 40)),
    *((GgmlFormat(name), blocks(name)) for name in GGML if name not in FIXED),
]


def computed(format: AnyFormat, quantized: AnyQuantized, dtype: torch.dtype, wide: torch.dtype) -> torch.Tensor:
    kind = TUNABLE[type(format)]
    numbers = {name: each.stored(each.start.float()).to(wide) for name, each in kind.numbers(quantized, format).items()}
    return kind.weight(kind.fixed(quantized, format), numbers, dtype)


@pytest.mark.parametrize(
    ("format", "quantized"), CASES, ids=lambda case: str(case) if not isinstance(case, tuple) else ""
)
def test_the_weight_at_the_start_is_the_one_that_is_stored(format: AnyFormat, quantized: AnyQuantized) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        wanted = storage.dequantize(quantized, format, dtype)
        found = computed(format, quantized, dtype, torch.float32)
        if isinstance(format, GgmlFormat):
            # llama.cpp multiplies a block's inner scales first: one rounding in float32 apart.
            torch.testing.assert_close(found, wanted, rtol=2**-7 if dtype == torch.bfloat16 else 3e-7, atol=1e-5)
        else:
            assert torch.equal(found, wanted)


def test_products_of_bfloat16_scales_may_be_taken_in_bfloat16() -> None:
    for format in (Format(3, 16), Format(8, 16), Format(4, 16, symmetric=False)):
        quantized = grid(format, 48)
        found = computed(format, quantized, torch.bfloat16, torch.bfloat16)
        assert torch.equal(found, storage.dequantize(quantized, format, torch.bfloat16))


@pytest.mark.parametrize(
    ("format", "quantized"), CASES, ids=lambda case: str(case) if not isinstance(case, tuple) else ""
)
def test_gradients_are_those_of_the_values_that_are_stored(format: AnyFormat, quantized: AnyQuantized) -> None:
    """The weight is linear in each kind of numbers: a step of one of them, by what is stored, is the gradient's."""
    kind = TUNABLE[type(format)]
    numbers = kind.numbers(quantized, format)
    fixed = kind.fixed(quantized, format)
    masters = {name: each.start.float().requires_grad_() for name, each in numbers.items()}
    weight = kind.weight(fixed, {name: numbers[name].stored(master) for name, master in masters.items()}, torch.float32)
    towards = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((weight * towards).sum(), list(masters.values()))
    before = storage.dequantize(quantized, format, torch.float64)
    for (name, number), gradient in zip(numbers.items(), gradients, strict=True):
        moved = number.start.clone()
        moved[0, 0] = moved[0, 0] * 2 if number.start.is_floating_point() else moved[0, 0] ^ 1
        now = {other: each.start for other, each in numbers.items()} | {name: moved}
        after = storage.dequantize(kind.put(quantized, now), format, torch.float64)
        step = float(moved[0, 0].double() - number.start[0, 0].double())
        wanted = float(((after - before) * towards).sum()) / step
        assert float(gradient[0, 0]) == pytest.approx(wanted, rel=1e-4, abs=1e-4), name


@pytest.mark.parametrize("name", GGML)
def test_all_of_a_block_is_linear_in_its_free_scales(name: str) -> None:
    quantized = blocks(name)
    free = ggml.free_scales(quantized)
    assert bool(free) == (name not in FIXED)
    doubled = ggml.with_free_scales(quantized, {key: scales * 2 for key, scales in free.items()})
    none = ggml.with_free_scales(quantized, {key: scales * 0 for key, scales in free.items()})
    values = torch.from_numpy(gguf.quants.dequantize(quantized.data.numpy(), ggml.ggml_type(name)))
    if free:
        assert torch.equal(ggml.dequantize_ggml(doubled, torch.float32), 2 * values)
        assert not ggml.dequantize_ggml(none, torch.float32).any()
    assert torch.equal(ggml.with_free_scales(quantized, free).data, quantized.data)


@given(
    st.lists(st.floats(-(2.0**120), 2.0**120, width=32), min_size=1, max_size=8),
    st.sampled_from([torch.float16, torch.bfloat16, torch.uint8]),
)
def test_numbers_stay_within_what_is_stored(values: list[float], dtype: torch.dtype) -> None:
    start = torch.ones(len(values), dtype=dtype)
    low, high = (1.0, 7.0) if dtype == torch.uint8 else (torch.finfo(dtype).tiny, torch.finfo(dtype).max)
    master = torch.tensor(values, requires_grad=True)
    stored = Number(start, torch.ones(()), (low, high)).stored(master)
    assert bool((stored >= low).all() and (stored <= high).all())
    assert torch.equal(stored.to(dtype).float(), stored)
    stored.sum().backward()
    assert torch.equal(master.grad, torch.ones(len(values)))


def test_a_norm_is_measured_in_the_mean_of_its_sizes() -> None:
    number = as_it_is(torch.tensor([1.0, -3.0], dtype=torch.float16))
    assert float(number.unit) == 2
    assert float(as_it_is(torch.zeros(3)).unit) > 0
