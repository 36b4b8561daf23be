"""Importance of channels by fine-tuning updates, against plain float64 loops."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixprec.numerics import updates


def loop(modules: list[torch.Tensor], ends: float = 10.0) -> list[list[float]]:
    """One weight at a time: importance of each channel of each module."""
    positive = [float(each) for module in modules for each in module.flatten() if each > 0]
    least, middle, most = min(positive), statistics.median(positive), max(positive)
    found = []
    for module in modules:
        row = []
        for column in range(module.shape[1]):
            total, zeros = 0.0, 0
            for each in map(float, module[:, column]):
                if each == 0:
                    total, zeros = total + 1, zeros + 1
                elif each <= middle:
                    total += 1 + (ends - 1) * ((middle - each) / max(middle - least, 1e-30)) ** 2
                else:
                    total += 1 + (ends - 1) * ((each - middle) / max(most - middle, 1e-30)) ** 2
            row.append(total / len(module) * (zeros + 1))
        found.append(row)
    return found


def drawn(seed: int, *shapes: tuple[int, int]) -> list[torch.Tensor]:
    """|ΔW| with many zeros, as 16-bit weights leave them."""
    random = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=random) * 1e-3).abs().bfloat16().float() *
            (torch.rand(shape, generator=random) < 0.7) for shape in shapes]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_importance_is_that_of_a_loop(seed: int) -> None:
    modules = drawn(seed, (7, 5), (4, 5), (6, 3))
    of = updates.extent(lambda: modules)
    for module, expected in zip(modules, loop(modules), strict=True):
        found = updates.importance([updates.channel_sums(module, of)])
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_modules_that_share_channels_count_as_one() -> None:
    one, other, third = drawn(5, (7, 5), (4, 5), (6, 3))
    of = updates.extent(lambda: [one, other, third])
    together = updates.importance([updates.channel_sums(torch.cat([one, other]), of)])
    parts = updates.importance([updates.channel_sums(each, of) for each in (one, other)])
    torch.testing.assert_close(parts, together, rtol=1e-13, atol=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 2.0**127, width=32), min_size=1, max_size=40).filter(any))
def test_least_median_and_most_are_exact(values: list[float]) -> None:
    whole = torch.tensor(values, dtype=torch.float32)
    parts = [whole[: len(values) // 2].reshape(1, -1), whole[len(values) // 2 :].reshape(-1, 1)]
    found = updates.extent(lambda: [part for part in parts if part.numel()])
    positive = sorted(value for value in values if value > 0)
    assert (found.least, found.most) == (positive[0], positive[-1])
    assert found.middle == pytest.approx(statistics.median(positive), rel=1e-15)
    assert (found.changed, found.zeros) == (len(positive), len(values) - len(positive))


@given(st.floats(2.0**-20, 1.0, width=32))
@settings(max_examples=60, deadline=None)
def test_both_ends_count_most_and_the_middle_least(value: float) -> None:
    of = updates.Extent(2.0**-20, 2.0**-10, 1.0, 10, 0)
    found = float(updates.both_ends(torch.tensor([value]), of))
    assert 1 <= found <= 10
    for end, expected in ((of.least, 10.0), (of.most, 10.0), (of.middle, 1.0), (0.0, 1.0)):
        assert float(updates.both_ends(torch.tensor([end], dtype=torch.float64), of)) == pytest.approx(expected)


def test_one_value_only_and_none() -> None:
    same = torch.full((2, 3), 0.5)
    of = updates.extent(lambda: [same])
    assert of.least == of.middle == of.most == 0.5
    assert updates.importance([updates.channel_sums(same, of)]).tolist() == [1.0] * 3
    with pytest.raises(ValueError, match="all updates are zero"):
        updates.extent(lambda: [torch.zeros(2, 2)])
    assert math.isfinite(float(updates.both_ends(torch.tensor([3e38]), of)))
