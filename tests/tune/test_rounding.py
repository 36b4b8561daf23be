"""One weight on its way: it starts as it was solved, and whatever it becomes can be stored."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixprec.numerics import storage
from mixprec.numerics.codebook import CodebookQuantized
from mixprec.numerics.formats import AnyFormat, CodebookFormat, Format
from mixprec.numerics.groupwise import Quantized, Search, encode, fit, quantize
from mixprec.tune.rounding import Rounding

FORMATS = st.builds(Format, st.integers(2, 8), st.sampled_from([4, 8, -1]), st.booleans())


def weights(seed: int, rows: int = 6, columns: int = 18) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).bfloat16()


def book(seed: int) -> CodebookQuantized:
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 8, (6, 18), generator=random).to(torch.uint8)
    entries = torch.randn(6, 8, generator=random).sort(1).values
    scales, offsets = torch.rand(6, 3, generator=random) + 0.5, torch.randn(6, 3, generator=random)
    return CodebookQuantized(codes, entries.bfloat16(), scales.bfloat16(), offsets.bfloat16())


@settings(deadline=None, max_examples=60)
@given(format=FORMATS, seed=st.integers(0, 10**6), size=st.sampled_from([0.0, 0.01, 1.0, 100.0]))
def test_at_first_all_is_as_it_was_solved(format: Format, seed: int, size: float) -> None:
    start = quantize(weights(seed), format)
    rests = size * torch.randn(6, 18, generator=torch.Generator().manual_seed(seed + 1))
    found = Rounding(start, format, rests=rests)
    now = found.quantized()
    assert torch.equal(now.codes, start.codes)
    assert now.codes.dtype == start.codes.dtype
    assert torch.equal(now.grid.scales, start.grid.scales)
    assert torch.equal(found.weight(torch.bfloat16), storage.dequantize(start, format, torch.bfloat16))


@settings(deadline=None, max_examples=60)
@given(format=FORMATS, seed=st.integers(0, 10**6), steps=st.integers(1, 5), move=st.floats(0.01, 3))
def test_wherever_it_moves_it_can_be_stored(format: Format, seed: int, steps: int, move: float) -> None:
    weight, random = weights(seed), torch.Generator().manual_seed(seed)
    grid = fit(weight, format, search=Search())  # some scales below 0
    start = Quantized(encode(weight, grid, format), grid)
    fixed = torch.rand(6, 18, generator=random) < 0.3
    rests = weight.float() - storage.dequantize(start, format, torch.float32)
    rounding = Rounding(start, format, rests=rests, fixed=fixed)
    for _ in range(steps):
        rounding.step(rounding.weight(torch.bfloat16), torch.randn(6, 18, generator=random), move, rate=0.3)
    now = rounding.quantized()
    assert isinstance(now, Quantized)
    lowest = -(2 ** (format.bits - 1)) if format.symmetric else 0
    assert int(now.codes.min()) >= lowest
    assert int(now.codes.max()) <= lowest + 2**format.bits - 1
    assert now.codes.dtype == start.codes.dtype
    assert torch.equal(now.codes[fixed], start.codes[fixed])
    assert now.grid.scales.dtype == torch.bfloat16
    assert torch.equal(now.grid.scales.sign(), start.grid.scales.sign())
    assert bool(now.grid.scales.isfinite().all())
    if not format.symmetric:
        assert now.grid.zeros is not None
        assert start.grid.zeros is not None
        assert torch.equal(now.grid.zeros, start.grid.zeros)
    assert torch.equal(rounding.weight(torch.bfloat16), storage.dequantize(now, format, torch.bfloat16))


def test_codes_move_by_signs_from_where_they_were_rounded() -> None:
    format = Format(3, 4)
    start = quantize(torch.tensor([[0.9, -1.0, 0.3, 0.1]]).bfloat16(), format)
    scale = float(start.grid.scales[0, 0])
    rests = scale * torch.tensor([[0.45, 0.0, -0.45, 0.2]])
    rounding = Rounding(start, format, rests=rests, scales=False)
    rounding.step(rounding.weight(torch.bfloat16), torch.tensor([[-1e-9, -5.0, 3.0, -2.0]]), 0.1, rate=1.0)
    moved = rounding.quantized().codes.int() - start.codes.int()
    assert moved.tolist() == [[min(1, 3 - int(start.codes[0, 0])), 0, -1, 0]]


@pytest.mark.parametrize(
    ("start", "format"), [(quantize(weights(1), Format(3, 6)), Format(3, 6)), (book(1), CodebookFormat(3, 6))]
)
def test_numbers_move_against_their_gradient(start: Quantized | CodebookQuantized, format: AnyFormat) -> None:
    """Adam's first step goes ``rate`` units against the sign of each number's gradient, here by finite differences."""
    towards = torch.randn(6, 18, generator=torch.Generator().manual_seed(2))
    rounding = Rounding(start, format)
    before = rounding.quantized()
    rounding.step(rounding.weight(torch.float32), towards, move=0.0, rate=0.25)
    after = rounding.quantized()
    pairs = {"scales": (start.grid.scales, after.grid.scales)} if isinstance(start, Quantized) else {
        name: (getattr(start, name), getattr(after, name)) for name in ("scales", "offsets", "codebook")
    }  # fmt: skip
    assert torch.equal(before.codes, after.codes)
    for name, (old, new) in pairs.items():
        for place in ((0, 0), (3, 1), (5, 2)):
            moved = old.double().clone()
            moved[place] += 1e-3
            grid = {name: moved}
            one = (
                start._replace(grid=start.grid._replace(**grid))
                if isinstance(start, Quantized)
                else start._replace(**grid)
            )
            slope = (
                storage.dequantize(one, format, torch.float64) - storage.dequantize(start, format, torch.float64)
            ) / 1e-3
            sign = torch.sign((slope * towards.double()).sum())
            assert torch.sign(new[place].double() - old[place].double()) == -sign, name


def test_a_format_without_codes_of_steps_moves_numbers_only() -> None:
    assert Rounding(book(3), CodebookFormat(3, 6), rests=torch.zeros(6, 18), scales=False).moves is False
    assert Rounding(book(3), CodebookFormat(3, 6), rests=torch.zeros(6, 18)).moves
    start = quantize(weights(1), Format(3, 6))
    assert Rounding(start, Format(3, 6), scales=False).moves is False
    assert Rounding(start, Format(3, 6), rests=torch.zeros(6, 18), scales=False).moves
