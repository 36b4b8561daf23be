"""The choice of the lowest scores against Python's own sort; texts of sparsities."""

from __future__ import annotations

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mixprec.core.errors import UserError
from mixprec.numerics.masks import lowest, mask
from mixprec.numerics.sparsity import Sparsity, parse_sparsity, pattern_zeros

fractions = st.floats(0, 1, exclude_min=True, exclude_max=True)
patterns = st.tuples(st.integers(1, 12), st.integers(1, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))
# Few different values, so that there are ties.
values = st.one_of(st.integers(0, 3).map(float), st.floats(0, 100, width=32))


@st.composite
def scores(draw: st.DrawFn) -> torch.Tensor:
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 30)))
    return torch.from_numpy(draw(arrays.arrays(np.float32, shape, elements=values)))


def first_lowest(items: list[float], count: int) -> list[bool]:
    chosen = set(sorted(range(len(items)), key=lambda index: (items[index], index))[:count])
    return [index in chosen for index in range(len(items))]


@given(st.one_of(fractions.map(Sparsity), patterns.map(lambda pair: Sparsity.kept_of(*pair))))
@example(Sparsity(0.5))
@example(Sparsity(1e-300))
@example(Sparsity(1 - 2**-53))
@example(Sparsity.kept_of(2, 4))
def test_text_round_trips(sparsity: Sparsity) -> None:
    assert parse_sparsity(str(sparsity)) == sparsity


@pytest.mark.parametrize(
    ("value", "fraction", "pattern"),
    [("0.5", 0.5, None), (0.5, 0.5, None), (".25", 0.25, None), ("2:4", 0.5, (2, 4)), ("1:4", 0.75, (1, 4))],
)
def test_text_means(value: str | float, fraction: float, pattern: tuple[int, int] | None) -> None:
    assert parse_sparsity(value) == Sparsity(fraction, pattern)


def test_a_pattern_counts_what_is_kept() -> None:
    assert Sparsity.kept_of(3, 4).fraction == 0.25
    assert str(parse_sparsity("3:4")) == "3:4"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "0",
        "1",
        0,
        1,
        1.0,
        -0.5,
        "-0.5",
        "50%",
        "nan",
        float("nan"),
        "inf",
        True,
        "4:2",
        "4:4",
        "0:4",
        "2:",
        "2:4:8",
    ],
)
def test_bad_values_are_named_with_examples(value: str | float) -> None:
    with pytest.raises(UserError) as caught:
        parse_sparsity(value)
    assert repr(value) in str(caught.value)
    assert "0.5" in str(caught.value)
    assert "2:4" in str(caught.value)


@pytest.mark.parametrize(("fraction", "pattern"), [(0.0, None), (1.0, None), (0.25, (2, 4)), (0.5, (0, 4))])
def test_impossible_sparsities_cannot_be_made(fraction: float, pattern: tuple[int, int] | None) -> None:
    with pytest.raises(ValueError, match="no such sparsity"):
        Sparsity(fraction, pattern)
    with pytest.raises(ValueError, match="no such sparsity"):
        Sparsity.kept_of(4, 4)


@given(scores(), fractions)
def test_rows_lose_their_lowest(table: torch.Tensor, fraction: float) -> None:
    count = round(fraction * table.shape[1])
    assert mask(table, Sparsity(fraction)).tolist() == [first_lowest(row, count) for row in table.tolist()]


@given(scores(), fractions)
def test_a_matrix_loses_its_lowest(table: torch.Tensor, fraction: float) -> None:
    flat = table.flatten().tolist()
    expected = first_lowest(flat, round(fraction * len(flat)))
    assert mask(table, Sparsity(fraction), scope="matrix").flatten().tolist() == expected


@given(scores(), patterns, st.sampled_from(["row", "matrix"]))
def test_groups_lose_their_lowest_and_a_smaller_last_one_its_share(
    table: torch.Tensor, pattern: tuple[int, int], scope: str
) -> None:
    kept, group = pattern
    expected = []
    for row in table.tolist():
        removed: list[bool] = []
        for start in range(0, len(row), group):
            members = row[start : start + group]
            removed += first_lowest(members, len(members) * (group - kept) // group)
        expected.append(removed)
    assert mask(table, Sparsity.kept_of(kept, group), scope=scope).tolist() == expected  # type: ignore[arg-type]


@given(scores(), st.integers(0, 40), st.sampled_from([0, 1]), st.sampled_from([torch.float32, torch.bfloat16]))
def test_lowest_along_either_dimension(table: torch.Tensor, count: int, dim: int, dtype: torch.dtype) -> None:
    table = table.to(dtype)
    lines = table.T.tolist() if dim == 0 else table.tolist()
    found = lowest(table, count, dim)
    assert (found.T if dim == 0 else found).tolist() == [first_lowest(line, count) for line in lines]


def test_zeros_of_a_smaller_group() -> None:
    assert [pattern_zeros(width, 2, 4) for width in range(5)] == [0, 0, 1, 1, 2]
    assert pattern_zeros(3, 1, 4) == 2


def test_nan_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        mask(torch.tensor([[1.0, float("nan")]]), Sparsity(0.5))
