"""Shift of relative importance and the ranks of Table 3."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from maps import address

from mixprec.core.errors import UserError
from mixprec.importance import artifact
from mixprec.importance.shift import between_behaviours, find_places, ordinal, places, shift
from mixprec.models.labels import KINDS

LAYERS = 3
COUNT = LAYERS * len(KINDS)
SCORES = st.lists(st.floats(0, 1e3, allow_subnormal=False), min_size=COUNT, max_size=COUNT).filter(any)


def build(**behaviours: list[float]) -> dict[str, Any]:
    """An importance artifact of a decoder with three layers."""
    rows = [
        {"address": address(layer, kind), "label": f"{layer}_{kind}", "layer": layer, "kind": kind}
        for layer in range(1, LAYERS + 1)
        for kind in KINDS
    ]
    return {
        "preset": "paper",
        "traces": 4,
        "provenance": {"model": "abc"},
        "modules": rows,
        "behaviours": {name: {"scores": scores, "spans": 1, "traces": 1} for name, scores in behaviours.items()},
    }


@given(SCORES, SCORES)
def test_a_shift_moves_importance_and_makes_none(one: list[float], other: list[float]) -> None:
    entry = shift(build(a=one), build(a=other))["behaviours"]["a"]
    for part in entry["relative"]:
        assert sum(part) == pytest.approx(1)
    assert sum(entry["net"]) == pytest.approx(0, abs=1e-9)
    parts = zip(entry["decreases"], entry["increases"], entry["net"], strict=True)
    assert all(fall + rise == net and fall >= 0 >= rise and 0 in (fall, rise) for fall, rise, net in parts)
    assert entry["moved"] == pytest.approx(-sum(entry["increases"]), abs=1e-9) and 0 <= entry["moved"] <= 1 + 1e-9


@given(SCORES, SCORES, st.floats(1e-3, 1e3))
def test_the_scale_of_scores_does_not_matter_and_the_order_turns_the_sign(
    one: list[float], other: list[float], factor: float
) -> None:
    forth = shift(build(a=one), build(a=other))["behaviours"]["a"]["net"]
    back = shift(build(a=[factor * x for x in other]), build(a=one))["behaviours"]["a"]["net"]
    assert back == pytest.approx([-x for x in forth], abs=1e-9)


def test_a_shift_by_hand() -> None:
    one, other = [0.0] * COUNT, [0.0] * COUNT
    one[0], one[1], other[0], other[2] = 3.0, 1.0, 1.0, 1.0
    made = shift(build(a=one, b=one), build(a=other, c=one), ("x.json", "y.json"))
    entry = made["behaviours"]["a"]
    assert entry["decreases"][:3] == [0.25, 0.25, 0] and entry["increases"][:3] == [0, 0, -0.5]
    assert entry["moved"] == 0.5 and entry["top10_overlap"] == 10
    assert made["skipped"] == {"b": "no importance in y.json", "c": "no importance in x.json"}
    assert made["first"] == {"name": "x.json", "model": "abc", "preset": "paper", "traces": 4}
    assert [pair["behaviours"] for pair in made["between"]["first"]] == [["a", "b"]]
    assert made["between"]["first"][0]["spearman"] == pytest.approx(1)
    json.dumps(made, allow_nan=False)


def test_an_artifact_does_not_shift_from_itself() -> None:
    importance = build(a=[float(x) for x in range(COUNT)])
    entry = shift(importance, importance)["behaviours"]["a"]
    assert not any(entry["net"]) and entry["moved"] == 0 and entry["spearman"] == pytest.approx(1)


def test_different_modules_are_the_users_error() -> None:
    one, other = build(a=[1.0] * COUNT), build(a=[1.0] * COUNT)
    other["modules"] = other["modules"][:-1]
    with pytest.raises(
        UserError, match=r"x, y: importance of different modules \(21 and 20; model\.layers\.2\.mlp\.down"
    ):
        shift(one, other, ("x", "y"))
    other["modules"] = one["modules"][::-1]
    with pytest.raises(UserError, match="their order differs"):
        shift(one, other)


def test_nothing_in_common_is_the_users_error() -> None:
    with pytest.raises(UserError, match="no behaviour has importance in both"):
        shift(build(a=[1.0] * COUNT), build(a=[0.0] * COUNT))


@given(SCORES, SCORES)
def test_places_are_permutations_overall_and_in_every_row_and_column(one: list[float], other: list[float]) -> None:
    importance = build(a=one, b=other)
    found = places(importance)
    assert [place.label for place in found] == [row["label"] for row in importance["modules"]]
    assert sorted(place.overall for place in found) == [(rank, COUNT) for rank in range(1, COUNT + 1)]
    for kind in KINDS:
        ranks = [p.row for p, row in zip(found, importance["modules"], strict=True) if row["kind"] == kind]
        assert sorted(ranks) == [(rank, LAYERS) for rank in range(1, LAYERS + 1)]
    for layer in range(1, LAYERS + 1):
        ranks = [p.column for p, row in zip(found, importance["modules"], strict=True) if row["layer"] == layer]
        assert sorted(ranks) == [(rank, 7) for rank in range(1, 8)]
    assert sum(place.share for place in found) == pytest.approx(1)
    totals = {place.label: place.total for place in found}
    assert totals == {
        row["label"]: pytest.approx(a + b) for row, a, b in zip(importance["modules"], one, other, strict=True)
    }


def test_ranks_sum_importance_over_behaviours_and_are_worded_as_in_the_paper() -> None:
    scores, more = [1.0 + 0.01 * x for x in range(COUNT)], [0.0] * COUNT
    labels = [row["label"] for row in build(a=scores)["modules"]]
    more[labels.index("1_k")] = 5.0
    importance = build(a=scores, b=more, c=[0.0] * COUNT)
    found = {place.label: place.words for place in find_places(importance, ["1_k", "last_down", "1_q", "*_k", "1_k"])}
    assert found["1_k"] == ("1st overall", "1st col", "1st row")
    assert found["3_down"] == ("2nd overall", "1st col", "1st row")
    assert found["1_q"] == ("last overall", "last col", "last row")
    assert list(found) == ["1_k", "3_down", "1_q", "2_k", "3_k"]
    top = find_places(importance, [])
    assert len(top) == artifact.TOP and [place.overall[0] for place in top] == list(range(1, 11))
    with pytest.raises(UserError, match="did you mean"):
        find_places(importance, ["4_up"])


@pytest.mark.parametrize(
    ("rank", "count", "word"),
    [(1, 1, "1st"), (1, 7, "1st"), (2, 7, "2nd"), (3, 7, "3rd"), (4, 7, "4th"), (7, 7, "last"),
     (11, 32, "11th"), (12, 32, "12th"), (13, 32, "13th"), (21, 32, "21st"), (111, 224, "111th"), (122, 224, "122nd")],
)  # fmt: skip
def test_ordinals(rank: int, count: int, word: str) -> None:
    assert ordinal(rank, count) == word


def test_behaviours_without_importance_are_compared_with_nothing() -> None:
    up = [float(x) for x in range(COUNT)]
    found = between_behaviours(build(a=up, b=[0.0] * COUNT, c=up[::-1]))
    assert [(pair["behaviours"], pair["top10_overlap"]) for pair in found] == [(["a", "c"], 0)]
    assert found[0]["spearman"] == pytest.approx(-1)
