from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixprec.importance.options import AttributionOptions
from mixprec.importance.windows import Window, pack, plan_work

BEHAVIOURS = ("a", "b")


class Span(NamedTuple):
    behaviour: str
    start: int
    end: int


def test_paper_has_the_preceding_tokens_in_mean_and_gradient() -> None:
    work = plan_work([Span("b", 10, 14)], BEHAVIOURS, 20, AttributionOptions.of("paper"))
    assert work.windows == [Window(1, 5, 14)]
    assert work.rows[1].nonzero()[:, 0].tolist() == list(range(5, 14))
    assert not work.rows[0].any()


def test_released_has_them_in_the_mean_only_and_drops_the_last_token() -> None:
    work = plan_work([Span("b", 10, 14)], BEHAVIOURS, 20, AttributionOptions.of("released"))
    assert work.windows == [Window(1, 10, 13)]
    assert work.rows[1].nonzero()[:, 0].tolist() == list(range(5, 13))


def test_positions_before_the_first_token_are_cut_in_paper_and_wrap_in_released() -> None:
    spans = [Span("a", 2, 6)]
    paper = plan_work(spans, BEHAVIOURS, 20, AttributionOptions.of("paper"))
    released = plan_work(spans, BEHAVIOURS, 20, AttributionOptions.of("released"))
    assert paper.windows == [Window(0, 0, 6)]
    assert paper.rows[0].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert released.rows[0].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4, 17, 18, 19]


def test_one_token_spans_are_counted_not_nan() -> None:
    work = plan_work([Span("a", 5, 6)], BEHAVIOURS, 20, AttributionOptions.of("released"))
    assert not work.windows
    assert work.skipped == {"one_token": 1}


def test_a_position_in_two_spans_counts_twice_and_other_behaviours_do_not() -> None:
    spans = [Span("a", 6, 9), Span("a", 8, 10), Span("deduction", 0, 20)]
    work = plan_work(spans, BEHAVIOURS, 20, AttributionOptions(preceding=0))
    assert work.rows[0].tolist() == [0] * 6 + [1, 1, 2, 1] + [0] * 10
    assert work.skipped == {}


windows = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(1, 30)).map(lambda t: Window(t[0], t[1], t[1] + t[2])),
    max_size=25,
)


@given(windows, st.integers(1, 40))
def test_packing_computes_every_position_of_every_window_once(chosen: list[Window], budget: int) -> None:
    found: dict[int, list[int]] = {}
    batches = list(pack(chosen, budget))
    assert max((len(batch.positions) for batch in batches), default=0) <= budget
    assert len(batches) == -(-sum(window.compute for window in chosen) // budget)
    for batch in reversed(batches):
        assert batch.starts.tolist() == sorted(batch.starts.tolist())
        for row, number in enumerate(batch.number.tolist()):
            window = chosen[number]
            # Only a batch's first window has positions in a batch that comes later.
            before = list(range(window.start, batch.earlier.stop)) if row == 0 else []
            assert found.get(number, []) == before
            found[number] = before + batch.positions[batch.owner == row].tolist()
            assert batch.starts[row] == window.start
            assert batch.lengths[row] == window.end - window.start
            assert batch.predicted[row] == len([t for t in range(window.start, window.end) if t > 0])
    assert found == {
        number: list(range(window.start, window.end - 1))
        for number, window in enumerate(chosen)
        if window.end - window.start > 1
    }


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_presets_differ_in_every_documented_way(preset: str) -> None:
    options = AttributionOptions.of(preset)  # type: ignore[arg-type]
    expected = {
        "paper": ("outside", "traces", True, False, False, False),
        "released": ("inside", "spans", False, True, True, True),
    }[preset]
    assert (
        options.absolute,
        options.divisor,
        options.preceding_in_gradient,
        options.drop_last,
        options.wrap_negative,
        options.alias_means,
    ) == expected
    assert (options.preceding, options.tokens) == (5, "mean")


def test_rows_are_float_counts() -> None:
    work = plan_work([], BEHAVIOURS, 7, AttributionOptions())
    assert work.rows.shape == (2, 7)
    assert work.rows.dtype == torch.float32
