"""SparseGPT against explicit Optimal Brain Surgeon in double precision, which inverts what is left at every column."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pruning import sample

from mixprec.compress.magnitude import magnitude
from mixprec.compress.sparsegpt import refine, sparsegpt
from mixprec.numerics.formats import Format, parse_format
from mixprec.numerics.groupwise import Quantized, dequantize, encode, fit
from mixprec.numerics.hessian import Factor, factorize, output_error
from mixprec.numerics.sparsity import Sparsity, parse_sparsity

DAMPING = 0.01


def damped(hessian: torch.Tensor) -> torch.Tensor:
    hessian = hessian.double()
    return hessian + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)


def naive(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    sparsity: Sparsity,
    starts: list[int],
    format: Format | None = None,
    order: list[int] | None = None,
    given: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and mask by explicit inverses of the Hessian of the columns that are left, one column after the other.

    ``starts``: where blocks begin within which the lowest scores are chosen; ``given``: the mask, instead of choosing.
    """
    order = order or list(range(weight.shape[1]))
    weight, hessian = weight.double()[:, order].clone(), damped(hessian)[order][:, order]
    rows, columns = weight.shape
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(columns)]
    removed = torch.zeros(rows, columns, dtype=torch.bool) if given is None else given[:, order]
    size = format.group_size if format else 0
    for j in range(columns):
        score = {(r, k): (weight[r, k] ** 2 / inverses[k][0, 0]).item() for r in range(rows) for k in range(j, columns)}
        if given is None and sparsity.pattern is None and j in starts:
            end = min([start for start in starts if start > j], default=columns)
            count = round(sparsity.fraction * rows * end) - round(sparsity.fraction * rows * j)
            members = [(r, k) for r in range(rows) for k in range(j, end)]
            for r, k in sorted(members, key=score.__getitem__)[:count]:
                removed[r, k] = True
        if format and j % size == 0:
            grid = fit(weight[:, j : j + size].masked_fill(removed[:, j : j + size], 0), format, torch.float16)
        if given is None and sparsity.pattern and j % sparsity.pattern[1] == 0:
            kept, group = sparsity.pattern
            end = min(j + group, columns)
            for r in range(rows):
                chosen = sorted(range(j, end), key=lambda k, r=r: score[r, k])[: (end - j) * (group - kept) // group]
                removed[r, chosen] = True
        for r in range(rows):
            value = 0.0 if removed[r, j] else weight[r, j].item()
            if format:
                column = torch.tensor([[value]], dtype=torch.float64)
                single = grid._replace(
                    scales=grid.scales[r : r + 1], zeros=None if grid.zeros is None else grid.zeros[r : r + 1]
                )
                whole = Format(format.bits, symmetric=format.symmetric)
                value = dequantize(Quantized(encode(column, single, whole), single), whole, torch.float64).item()
            step = (weight[r, j].item() - value) / inverses[j][0, 0]
            weight[r, j:] -= step * inverses[j][0]
            weight[r, j] = value
    back = torch.tensor(order).argsort()
    return weight[:, back], removed[:, back]


@pytest.mark.parametrize("text", ["0.5", "0.31", "2:4", "1:4", "3:5", "8:16"])
@pytest.mark.parametrize("block", [8, 128])
def test_equals_the_naive_solver(text: str, block: int) -> None:
    weight, hessian = sample(5, 38)
    sparsity = parse_sparsity(text)
    expected, removed = naive(weight, hessian, sparsity, list(range(0, 38, block)))
    exact = sparsegpt(weight.double(), factorize(hessian.double(), damping=DAMPING), sparsity, block=block)
    assert torch.equal(exact.mask, removed)
    assert exact.weight.dtype == torch.float64
    assert exact.quantized is None
    torch.testing.assert_close(exact.weight, expected, rtol=1e-9, atol=1e-10)
    narrow = sparsegpt(weight, factorize(hessian, damping=DAMPING), sparsity, block=block)
    assert narrow.weight.dtype == torch.float32
    assert torch.equal(narrow.mask, removed)
    torch.testing.assert_close(narrow.weight.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [8, 128])
def test_equals_the_naive_solver_in_the_order_of_activity(block: int) -> None:
    weight, hessian = sample(5, 38)
    factor = factorize(hessian.double(), damping=DAMPING, act_order=True)
    assert factor.order is not None
    starts = list(range(0, 38, block))
    expected, removed = naive(weight, hessian, Sparsity(0.5), starts, order=factor.order.tolist())
    solved = sparsegpt(weight.double(), factor, Sparsity(0.5), block=block)
    assert torch.equal(solved.mask, removed)
    torch.testing.assert_close(solved.weight, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("text", ["0.5", "2:4"])
@pytest.mark.parametrize("name", ["w3g8", "w4g8_asym", "w3g16", "w2g64", "w4g20_asym"])
@pytest.mark.parametrize("block", [8, 16, 128])
def test_jointly_with_quantization_equals_the_naive_solver(text: str, name: str, block: int) -> None:
    weight, hessian = sample(4, 40)
    format, sparsity = parse_format(name), parse_sparsity(text)
    assert isinstance(format, Format)
    factor = factorize(hessian.double(), damping=DAMPING)
    solved = sparsegpt(weight.double(), factor, sparsity, format, block=block)
    # Blocks hold whole groups or lie within one; the mask depends on where they begin.
    size = format.group_size
    if size <= block:
        starts = list(range(0, 40, block // size * size))
    else:
        starts = [inner for outer in range(0, 40, size) for inner in range(outer, min(outer + size, 40), block)]
    expected, removed = naive(weight, hessian, sparsity, starts, format)
    assert torch.equal(solved.mask, removed)
    torch.testing.assert_close(solved.weight, expected, rtol=1e-9, atol=1e-10)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 6),
    st.integers(1, 40),
    st.floats(0.001, 0.999),
    st.sampled_from([None, (2, 4), (1, 3), (5, 12)]),
    st.sampled_from(["", "w3g8", "w4g64_asym", "w2", "w5g5_asym"]),
    st.integers(1, 50),
    st.booleans(),
)
def test_counts_are_exact_and_survivors_lie_on_the_grid(
    rows: int, columns: int, fraction: float, pattern: tuple[int, int] | None, name: str, block: int, act_order: bool
) -> None:
    weight, hessian = sample(rows, columns)
    sparsity = Sparsity.kept_of(*pattern) if pattern else Sparsity(fraction)
    format = parse_format(name) if name else None
    assert format is None or isinstance(format, Format)
    factor = factorize(hessian, act_order=act_order and pattern is None)
    solved = sparsegpt(weight, factor, sparsity, format, block=block)
    assert bool((solved.weight[solved.mask] == 0).all())
    if pattern is None:
        assert int(solved.mask.sum()) == round(fraction * rows * columns)
    else:
        kept, group = pattern
        for start in range(0, columns, group):
            width = min(group, columns - start)
            assert bool((solved.mask[:, start : start + group].sum(1) == width * (group - kept) // group).all())
    if format is not None:
        assert solved.quantized is not None
        assert torch.equal(solved.weight, dequantize(solved.quantized, format, torch.float32))
        assert torch.equal(encode(solved.weight, solved.quantized.grid, format), solved.quantized.codes)
        assert solved.quantized.grid.scales.dtype == torch.float16
        assert solved.quantized.grid.scales.shape == (rows, format.groups(columns))


def test_next_to_no_sparsity_leaves_the_weight_as_it_is() -> None:
    weight, hessian = sample(6, 32)
    solved = sparsegpt(weight, factorize(hessian), Sparsity(1e-6))
    assert not bool(solved.mask.any())
    assert torch.equal(solved.weight, weight)


def test_inputs_that_are_alike_and_apart_leave_magnitudes_to_decide() -> None:
    weight, _ = sample(6, 32)
    factor = factorize(3 * torch.eye(32))
    assert torch.equal(sparsegpt(weight, factor, Sparsity(0.4)).weight, magnitude(weight, Sparsity(0.4)))
    assert torch.equal(
        sparsegpt(weight, factor, Sparsity.kept_of(2, 4)).weight, magnitude(weight, Sparsity.kept_of(2, 4))
    )


@pytest.mark.parametrize("name", ["w3g8", "w4g16_asym"])
def test_inputs_that_are_apart_round_the_survivors_to_nearest(name: str) -> None:
    weight, _ = sample(6, 32)
    sizes = torch.rand(32, generator=torch.Generator().manual_seed(1)) + 0.1
    format = parse_format(name)
    assert isinstance(format, Format)
    factor = factorize(torch.diag(sizes), damping=0.0)
    solved = sparsegpt(weight, factor, Sparsity(0.5), format)
    # Without correlations U is diagonal with 1/√h, so the score is w² h and nothing is compensated.
    scores = (weight.square() * sizes).flatten()
    expected = torch.zeros(scores.numel(), dtype=torch.bool)
    expected[scores.argsort()[: scores.numel() // 2]] = True
    assert torch.equal(solved.mask.flatten(), expected)
    survivors = weight.masked_fill(solved.mask, 0)
    grid = fit(survivors, format)
    assert solved.quantized is not None
    assert torch.equal(solved.quantized.codes, encode(survivors, grid, format))
    assert torch.equal(solved.quantized.grid.scales, grid.scales)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("name", ["", "w4g8"])
def test_dead_inputs_go_first_and_are_zero(act_order: bool, name: str) -> None:
    weight, hessian = sample(6, 32)
    dead = torch.tensor([3, 17])
    weight[:, dead] *= 100
    hessian[dead] = 0
    hessian[:, dead] = 0
    format = parse_format(name) if name else None
    assert format is None or isinstance(format, Format)
    solved = sparsegpt(weight, factorize(hessian, act_order=act_order), Sparsity(0.25), format)
    assert bool((solved.weight[:, dead] == 0).all())
    assert bool(solved.mask[:, dead].all())
    assert int(solved.mask.sum()) == 6 * 32 // 4
    barely = sparsegpt(weight, factorize(hessian, act_order=act_order), Sparsity(1e-6), format)
    assert bool((barely.weight[:, dead] == 0).all())


@pytest.mark.parametrize("act_order", [False, True])
def test_a_given_mask_is_kept_and_compensated(act_order: bool) -> None:
    weight, hessian = sample(6, 32)
    given = torch.rand(6, 32, generator=torch.Generator().manual_seed(2)) < 0.5
    factor = factorize(hessian.double(), damping=DAMPING, act_order=act_order)
    order = None if factor.order is None else factor.order.tolist()
    for sparsity in (Sparsity.kept_of(2, 4), Sparsity(0.5)):  # what they say is not asked
        solved = sparsegpt(weight.double(), factor, sparsity, mask=given, block=8)
        assert torch.equal(solved.mask, given)
        expected, _ = naive(weight, hessian, sparsity, [0], order=order, given=given)
        torch.testing.assert_close(solved.weight, expected, rtol=1e-9, atol=1e-10)


def test_compensation_beats_rounding_the_same_mask() -> None:
    weight, hessian = sample(24, 64)
    format = Format(3, 16)
    solved = sparsegpt(weight, factorize(hessian), Sparsity(0.5), format)
    survivors = weight.masked_fill(solved.mask, 0)
    rounded = dequantize(
        Quantized(encode(survivors, fit(survivors, format), format), fit(survivors, format)), format, torch.float32
    )
    assert output_error(weight - solved.weight, hessian) < 0.8 * output_error(weight - rounded, hessian)


@pytest.mark.parametrize("text", ["0.5", "2:4"])
def test_refinement_reaches_least_squares_row_by_row(text: str) -> None:
    weight, hessian = sample(5, 24)
    solved = sparsegpt(weight, factorize(hessian), parse_sparsity(text))
    refined = refine(weight.double(), solved.weight, solved.mask, hessian.double(), steps=60, damping=DAMPING)
    exact = damped(hessian)
    for row, found, removed in zip(weight.double(), refined, solved.mask, strict=True):
        kept = ~removed
        best = torch.linalg.solve(exact[kept][:, kept], exact[kept] @ row)
        torch.testing.assert_close(found[kept], best, rtol=1e-8, atol=1e-9)
        assert bool((found[removed] == 0).all())


def test_every_step_of_refinement_helps() -> None:
    weight, hessian = sample(16, 48)
    solved = sparsegpt(weight, factorize(hessian), Sparsity(0.5))
    exact = damped(hessian)
    errors = [
        output_error(weight - refine(weight, solved.weight, solved.mask, hessian, steps=steps), exact)
        for steps in range(8)
    ]
    assert all(after < before for before, after in pairwise(errors))
    assert torch.equal(refine(weight, solved.weight, solved.mask, hessian, steps=0), solved.weight)


def test_refinement_of_what_is_solved_or_dead_changes_nothing() -> None:
    weight = torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.0, 0.0]])
    hessian = torch.diag(torch.tensor([1.0, 2.0, 0.0]))
    mask = torch.tensor([[True, False, False], [True, True, False]])
    refined = refine(weight, weight.masked_fill(mask, 0), mask, hessian)
    assert torch.equal(refined, weight.masked_fill(mask, 0))


def test_what_does_not_fit_is_refused() -> None:
    weight, hessian = sample(4, 16)
    reordered: Factor = factorize(hessian, act_order=True)
    with pytest.raises(ValueError, match="2:4 needs the columns in their own order"):
        sparsegpt(weight, reordered, Sparsity.kept_of(2, 4))
    with pytest.raises(ValueError, match="12 input columns, the factor 16"):
        sparsegpt(weight[:, :12], reordered, Sparsity(0.5))
    with pytest.raises(ValueError, match="the mask"):
        sparsegpt(weight, reordered, Sparsity(0.5), mask=torch.ones(4, 15, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "act_order", "text"), [("w3g8", True, "0.5"), ("w4g5_asym", False, "2:4")])
def test_groups_that_are_torn_apart_have_the_grid_of_the_weight_as_given(
    name: str, act_order: bool, text: str, dtype: torch.dtype
) -> None:
    weight, hessian = sample(6, 32)
    weight = weight.to(dtype)
    format = parse_format(name)
    assert isinstance(format, Format)
    solved = sparsegpt(weight, factorize(hessian, act_order=act_order), parse_sparsity(text), format)
    grid = fit(weight, format)
    assert solved.quantized is not None
    assert torch.equal(solved.quantized.grid.scales, grid.scales)
    if grid.zeros is not None:
        assert solved.quantized.grid.zeros is not None
        assert torch.equal(solved.quantized.grid.zeros, grid.zeros)
    rounded = dequantize(solved.quantized._replace(codes=encode(weight, grid, format)), format, torch.float32)
    rounded.masked_fill_(solved.mask, 0)
    assert output_error(weight.float() - solved.weight, hessian) < output_error(weight.float() - rounded, hessian)
