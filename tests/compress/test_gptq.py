"""GPTQ against Optimal Brain Quantization as the textbook has it: the inverse Hessian, downdated column by column."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixprec.compress.gptq import gptq
from mixprec.compress.rtn import rtn
from mixprec.numerics.formats import WHOLE_ROW, Format
from mixprec.numerics.groupwise import Grid, Quantized, Search, dequantize, encode, fit, scale_dtype_of
from mixprec.numerics.hessian import Factor, factorize, output_error

formats = st.builds(Format, st.integers(2, 8), st.sampled_from([WHOLE_ROW, 1, 5, 8, 16, 48]), st.booleans())
searches = st.sampled_from([None, Search(), Search(0.7, 0.15, 2)])


def problem(rows: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (rows, width) and the Hessian of correlated inputs, some much larger than others."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
    sizes = 1 + 9 * (torch.rand(width, generator=generator, dtype=torch.float64) < 0.1)
    inputs = torch.randn(2 * width, width, generator=generator, dtype=torch.float64)
    inputs = (inputs + inputs @ mixing) * sizes
    return weight.to(dtype), (inputs.T @ inputs / len(inputs)).to(dtype)


def brain_quantize(
    weight: torch.Tensor, hessian: torch.Tensor, format: Format, factor: Factor, static: bool, search: Search | None
) -> Quantized:
    """The reference: explicit inverses in float64, one column at a time, no blocks."""
    work, width = weight.double().clone(), weight.shape[1]
    size = width if format.group_size == WHOLE_ROW else format.group_size
    order = list(range(width)) if factor.order is None else factor.order.tolist()
    work[:, factor.dead] = 0
    hessian = hessian.double().clone()
    active = hessian.diagonal() != 0
    hessian[active, active] += factor.damping * hessian.diagonal()[active].mean()
    hessian[~active, ~active] = 1
    inverse = torch.linalg.inv(hessian)
    inverses, costs = [], torch.zeros(width, dtype=torch.float64)
    for column in order:
        inverses.append(inverse.clone())
        costs[column] = 1 / inverse[column, column]
        inverse = inverse - torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    dtype, whole = scale_dtype_of(weight.dtype), Format(format.bits, WHOLE_ROW, format.symmetric)
    grids: dict[int, Grid] = {}
    original = work.clone()
    codes = torch.empty_like(work)
    for step, column in enumerate(order):
        group = slice(column // size * size, column // size * size + size)
        if group.start not in grids:
            source = original if static else work
            grids[group.start] = fit(source[:, group], whole, dtype, search=search, column_weights=costs[group])
        grid = grids[group.start]
        code = encode(work[:, [column]], grid, whole)
        codes[:, column] = code[:, 0]
        error = work[:, column] - dequantize(Quantized(code, grid), whole, torch.float64)[:, 0]
        rest = order[step + 1 :]
        work[:, rest] -= torch.outer(error, inverses[step][column, rest]) / inverses[step][column, column]
    scales = torch.cat([grids[start].scales for start in sorted(grids)], 1)
    if format.symmetric:
        return Quantized(codes.to(torch.int8), Grid(scales, None))
    return Quantized(codes.to(torch.uint8), Grid(scales, torch.cat([grids[start].zeros for start in sorted(grids)], 1)))


def assert_same(found: Quantized, expected: Quantized) -> None:
    assert found.codes.dtype == expected.codes.dtype
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.grid.scales, expected.grid.scales)
    assert (found.grid.zeros is None) == (expected.grid.zeros is None)
    if found.grid.zeros is not None:
        assert torch.equal(found.grid.zeros, expected.grid.zeros)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 5),
    width=st.one_of(st.integers(1, 30), st.integers(31, 100)),
    format=formats,
    block=st.sampled_from([1, 7, 24, 40, 128]),
    order=st.sampled_from(["natural", "activation", "groups"]),
    static=st.booleans(),
    search=searches,
    dead=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_every_code_is_that_of_optimal_brain_quantization(
    rows: int,
    width: int,
    format: Format,
    block: int,
    order: str,
    static: bool,
    search: Search | None,
    dead: bool,
    seed: int,
) -> None:
    weight, hessian = problem(rows, width, seed)
    if dead:
        hessian[width // 2], hessian[:, width // 2] = 0, 0
    size = width if format.group_size == WHOLE_ROW else format.group_size
    factor = factorize(hessian, act_order=order != "natural", group_size=size if order == "groups" else None)
    static_here = static or (order == "activation" and split_up(factor, size))
    expected = brain_quantize(weight, hessian, format, factor, static_here, search)
    assert_same(gptq(weight, factor, format, block=block, static_groups=static, search=search), expected)


def split_up(factor: Factor, size: int) -> bool:
    """Whether some group's columns are not solved one after the other."""
    groups = [column // size for column in factor.order.tolist()]
    return sum(a != b for a, b in pairwise(groups)) >= len(set(groups))


@pytest.mark.parametrize("format", [Format(3, 64), Format(4, 32, symmetric=False)])
@pytest.mark.parametrize("act_order", [False, True])
def test_float32_differs_in_fewer_than_one_code_in_a_thousand(format: Format, act_order: bool) -> None:
    weight, hessian = problem(96, 192, 1, torch.float32)
    factor = factorize(hessian, act_order=act_order)
    expected = brain_quantize(weight, hessian, format, factor, act_order, Search())
    same = gptq(weight, factor, format).codes == expected.codes
    assert same.float().mean() >= 0.999


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 70),
    formats,
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from([None, 1, 16]),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 99),
)
def test_a_diagonal_hessian_gives_round_to_nearest(
    rows: int,
    width: int,
    format: Format,
    dtype: torch.dtype,
    group_size: int | None,
    hessian_dtype: torch.dtype,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator).to(dtype)
    hessian = torch.diag(torch.rand(width, generator=generator, dtype=hessian_dtype) + 0.01)
    for act_order in (False, True):
        factor = factorize(hessian, act_order=act_order, group_size=group_size)
        assert_same(gptq(weight, factor, format, block=24, search=None), rtn(weight, format))


def test_rows_are_independent() -> None:
    weight, hessian = problem(7, 40, 0)
    factor, format = factorize(hessian), Format(3, 16)
    whole = gptq(weight, factor, format)
    parts = [gptq(part, factor, format) for part in (weight[:2], weight[2:])]
    assert torch.equal(whole.codes, torch.cat([part.codes for part in parts]))
    assert torch.equal(whole.grid.scales, torch.cat([part.grid.scales for part in parts]))


@pytest.mark.parametrize("format", [Format(2, 32), Format(3, 32), Format(4, 64, symmetric=False), Format(3)])
def test_each_refinement_lowers_the_output_error(format: Format) -> None:
    weight, hessian = problem(64, 128, 3)

    def error(quantized: Quantized) -> float:
        return output_error(weight - dequantize(quantized, format, torch.float64), hessian)

    nearest = error(rtn(weight, format))
    plain = error(gptq(weight, factorize(hessian), format, search=None))
    searched = error(gptq(weight, factorize(hessian), format))
    ordered = error(gptq(weight, factorize(hessian, act_order=True, group_size=32), format))
    assert searched < plain
    assert max(searched, ordered) < 0.8 * nearest


def test_dead_inputs_have_weight_zero_and_do_not_matter() -> None:
    weight, hessian = problem(6, 24, 5)
    hessian[3], hessian[:, 3] = 0, 0
    for format in (Format(3, 8), Format(4, 8, symmetric=False)):
        for act_order in (False, True):
            quantized = gptq(weight, factorize(hessian, act_order=act_order), format)
            assert int(dequantize(quantized, format, torch.float64)[:, 3].count_nonzero()) == 0
            other = weight.clone()
            other[:, 3] = 1e4
            assert_same(gptq(other, factorize(hessian, act_order=act_order), format), quantized)


def test_a_singular_hessian_is_solved_with_more_damping() -> None:
    weight, _ = problem(8, 32, 0)
    token = torch.ones(1, 32, dtype=torch.float64)
    factor = factorize(token.T @ token, damping=0.0)
    assert factor.damping > 0
    quantized = gptq(weight, factor, Format(3, 8))
    hessian = token.T @ token
    error = output_error(weight - dequantize(quantized, Format(3, 8), torch.float64), hessian)
    assert error < 0.1 * output_error(
        weight - dequantize(rtn(weight, Format(3, 8)), Format(3, 8), torch.float64), hessian
    )


def test_inputs_are_left_alone_and_checked() -> None:
    weight, hessian = problem(3, 12, 0, torch.float32)
    factor, before = factorize(hessian, act_order=True), weight.clone()
    gptq(weight, factor, Format(3, 4))
    assert torch.equal(weight, before)
    with pytest.raises(ValueError, match="12 inputs"):
        gptq(weight[:, :8], factor, Format(3, 4))
    with pytest.raises(ValueError, match="column"):
        gptq(weight, factor, Format(3, 4), block=0)


def test_scales_that_overflow_stay_visible() -> None:
    weight, hessian = problem(3, 12, 0, torch.float32)
    restored = dequantize(gptq(weight * 1e30, factorize(hessian), Format(3, 4)), Format(3, 4), torch.float32)
    assert not bool(torch.isfinite(restored).any())
