"""Agreement of two annotations, against loops over characters."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixprec.core.errors import UserError
from mixprec.traces.agreement import NONE, compare, matches, pair
from mixprec.traces.spans import ALL_BEHAVIOURS, AnnotatedTrace, CharSpan
from mixprec.traces.store import Trace

TEXT = "We had four. Wait, no. I recall five."


def annotated(*spans: tuple[str, int, int], name: str = "a", text: str = TEXT) -> AnnotatedTrace:
    return AnnotatedTrace(Trace(name, "", "", text), [CharSpan(*span) for span in spans])


def kappa(one: list[bool], other: list[bool]) -> float:
    """Cohen (1960): (p_o - p_e) / (1 - p_e)."""
    n = len(one)
    observed = sum(a == b for a, b in zip(one, other, strict=True)) / n
    chance = sum((one.count(label) / n) * (other.count(label) / n) for label in (True, False))
    return (observed - chance) / (1 - chance)


SPANS = st.lists(
    st.tuples(st.sampled_from(ALL_BEHAVIOURS), st.integers(0, 30), st.integers(1, 8)).map(
        lambda given: (given[0], given[1], min(given[1] + given[2], len(TEXT)))
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(first=st.lists(SPANS, min_size=1, max_size=3), data=st.data())
def test_characters_are_counted_as_loops_count_them(
    first: list[list[tuple[str, int, int]]], data: st.DataObject
) -> None:
    second = [data.draw(SPANS) for _ in first]
    one, other = (
        [annotated(*spans, name=str(number)) for number, spans in enumerate(side)] for side in (first, second)
    )
    result = compare(pair(one, other), resamples=0)
    for behaviour in ALL_BEHAVIOURS:
        flags = [
            [any(b == behaviour and s <= at < e for b, s, e in spans) for spans in side for at in range(len(TEXT))]
            for side in (first, second)
        ]
        row = result["behaviours"][behaviour]["characters"]
        both = sum(a and b for a, b in zip(*flags, strict=True))
        assert (row["first"], row["second"], row["both"]) == (sum(flags[0]), sum(flags[1]), both)
        assert row["share_first"] == (pytest.approx(both / row["first"], abs=1e-6) if row["first"] else None)
        assert row["f1"] == (pytest.approx(2 * both / sum(map(sum, flags)), abs=1e-6) if any(map(sum, flags)) else None)
        if any(flags[0]) or any(flags[1]):
            assert row["kappa"] == pytest.approx(kappa(*flags), abs=1e-6)
    assert sum(sum(row.values()) for row in result["confusion"].values()) == len(TEXT) * len(first)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=4), st.lists(st.integers(0, 12), max_size=4))
def test_spans_match_one_to_one(first: list[int], second: list[int]) -> None:
    sides = [[CharSpan("deduction", at, at + 4) for at in side] for side in (first, second)]
    found = matches(*sides)
    assert found == matches(sides[1], sides[0]) <= min(len(first), len(second))
    # Never more than the best of all one-to-one assignments, and at least one where any pair is alike.
    alike = {
        (i, j) for i, a in enumerate(first) for j, b in enumerate(second) if 2 * (4 - abs(a - b)) >= 4 + abs(a - b)
    }
    longer = max(len(first), len(second))
    best = max(
        sum((i, j) in alike for i, j in enumerate(order)) for order in itertools.permutations(range(longer), longer)
    )
    assert bool(alike) <= found <= best


def test_intervals_are_of_traces_and_alike_every_time() -> None:
    one = [annotated(("backtracking", 13, 22), name=str(n)) for n in range(6)]
    other = [annotated(*([("backtracking", 13, 22)] * (n < 3)), name=str(n)) for n in range(6)]
    found = compare(pair(one, other))
    row = found["behaviours"]["backtracking"]["characters"]
    assert (row["share_first"], row["share_second"]) == (0.5, 1)
    low, high = row["share_first_ci"]
    assert 0 <= low < 0.5 < high <= 1 and row["share_second_ci"] == [1, 1]
    assert found["behaviours"]["deduction"]["spans"]["f1"] is None
    assert found == compare(pair(one, other))
    assert "share_first_ci" not in compare(pair(one[:1], other[:1]))["behaviours"]["backtracking"]["characters"]


def test_what_only_one_has_is_counted() -> None:
    one = [annotated(("deduction", 0, 5), name=name) for name in "abc"]
    other = [annotated(("backtracking", 3, 5), name=name) for name in "cxyd"]
    pairs = pair(one, other)
    assert [each.trace.id for each in pairs.first + pairs.second] == ["c", "c"]
    found = compare(pairs)
    assert (found["traces"], found["only_first"], found["only_second"]) == (1, 2, 3)
    assert found["confusion"]["deduction"] == {**dict.fromkeys((*ALL_BEHAVIOURS, NONE), 0), "backtracking": 2, NONE: 3}


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ([annotated(name="b")], "no trace in common"),
        ([annotated(text=TEXT + "!")], "'a' has another text in the second"),
    ],
)
def test_other_traces_are_refused(second: list[AnnotatedTrace], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pair([annotated()], second)
