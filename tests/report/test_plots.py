"""Charts as places in percent: axes, the Pareto plot, behaviours on one scale, names that don't meet."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mixprec.report.pagecharts import behaviour_rows, damage_rows, front, pareto_points, scatter_points, whole
from mixprec.report.plots import Axis, Point, axis, labelled

values = st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=30)


@given(values, st.booleans())
@example(found=[1e9, 999_999_999.999_999_9], log=False)
def test_an_axis_has_room_for_all_and_keeps_their_order(found: list[float], log: bool) -> None:
    scale = axis(found, log)
    places = [scale.at(value) for value in sorted(found)]
    assert places == sorted(places) and places[0] > 0 and places[-1] < 100
    ticks = [tick.at for tick in scale.ticks]
    assert ticks == sorted(set(ticks)) and all(0 <= at <= 100 for at in ticks) and len(ticks) <= 15


def test_a_log_axis_gives_equal_ratios_equal_room() -> None:
    scale = Axis(1, 100, True)
    assert scale.at(10) == 50 and scale.at(0) == scale.at(0.5) == 0 and scale.at(1e6) == 100
    assert Axis(2, 4).at(3) == 50


@given(st.lists(st.tuples(st.floats(0.1, 16), st.floats(1e-6, 10)), min_size=1, max_size=25))
def test_the_front_is_what_no_other_beats_in_both(sizes: list[tuple[float, float]]) -> None:
    variants = {f"v{n}": {"effective_bits": bits, "kl_mean": kl} for n, (bits, kl) in enumerate(sizes)}
    best = front(variants)
    beaten = {
        name
        for name, one in variants.items()
        for other in variants.values()
        if other["effective_bits"] <= one["effective_bits"] and other["kl_mean"] < one["kl_mean"]
    }
    assert set(best).isdisjoint(beaten)
    # What no other beats is on it, or as good as one that is.
    kept = [variants[name] for name in best]
    for name in variants.keys() - beaten:
        assert any(
            each["effective_bits"] <= variants[name]["effective_bits"] and each["kl_mean"] == variants[name]["kl_mean"]
            for each in kept
        )


def test_peers_and_controls_have_marks_of_their_own(summary: dict[str, Any]) -> None:
    variants = summary["variants"]
    variants["w3_random"]["control"] = True
    variants["peer"] = variants["w3"] | {"engine": "gptqmodel"}
    plot = pareto_points(whole(summary))
    assert plot is not None and {point.tip.partition("\n")[0]: point.kind for point in plot.points} == {
        "w3": "ours", "w3_last_mlp": "ours", "w3_random": "control", "peer": "peer"
    }  # fmt: skip
    assert [kind for kind, _ in plot.kinds] == ["ours", "control", "peer"]
    assert len(plot.lines) == 1 and plot.alt.endswith("w3, w3_last_mlp.")
    assert pareto_points({"w3": variants["w3"]}) is pareto_points({}) is None


def test_behaviours_share_their_scales(summary: dict[str, Any]) -> None:
    found = behaviour_rows(summary)
    assert [name for name, _, _ in found][:1] == ["Backtracking"] and found[0][1] == "2,100 tokens"
    for number in range(2):
        assert len({tuple(groups[number].ticks) for _, _, groups in found}) == 1
    # The same damage has the same place, in whichever behaviour.
    for variant in summary["variants"].values():
        variant["behaviours"] = dict.fromkeys(variant["behaviours"], variant["behaviours"]["backtracking"])
    places = [[bar.at for row in groups[0].rows for bar in row.bars] for _, _, groups in behaviour_rows(summary)]
    assert all(each == places[0] for each in places)


def test_an_interval_that_reaches_zero_ends_at_the_axis(summary: dict[str, Any]) -> None:
    summary["variants"]["w3"]["kl_mean_ci"] = [0.0, 2.0]
    (bar,) = damage_rows(summary)[0].rows[0].bars
    assert bar.low == 0 and bar.high is not None and bar.low < bar.at < bar.high < 100
    summary["variants"]["w3_random"]["kl_mean"] = None
    assert damage_rows(summary)[-1].note == "KL is 0 for bf16; not measured: w3_random"
    for variant in summary["variants"].values():
        variant |= {"kl_mean": None, "behaviours": {}}
    assert damage_rows(summary) == behaviour_rows(summary) == []


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), max_size=40))
def test_names_of_points_do_not_meet(places: list[tuple[float, float]]) -> None:
    points = labelled([Point(x, y, "ours", "", name=f"variant_{n}") for n, (x, y) in enumerate(places)], 700, 300)
    boxes = []
    for point in points:
        if point.name:
            x, y = 7 * point.x, 3 * point.y + point.dy
            left = x + 10 if point.anchor == "start" else x - 10 - 6.6 * len(point.name)
            boxes.append((left, left + 6.6 * len(point.name), y - 11, y + 3))
    for at, (left, right, top, bottom) in enumerate(boxes):
        assert left >= 0 and right <= 700 + 1e-6
        assert not any(left < r and lower < right and top < b and t < bottom for lower, r, t, b in boxes[at + 1 :])


@pytest.mark.parametrize("bad", [0.0, None])
def test_a_scatter_leaves_out_what_a_log_axis_has_no_place_for(bad: float | None) -> None:
    means = {"a": 1.0, "b": 0.1, "c": 0.01, "d": bad}
    cells = [{"name": name, "format": "w3", "kl": {"all": {"mean": mean}}} for name, mean in means.items()]
    result = {"cells": cells, "scores": {"fisher, all": {f"{name}, w3": 2.0 for name in means}}}
    (plot,) = scatter_points(result)
    assert [point.tip.partition("\n")[0] for point in plot.points] == ["a, w3", "b, w3", "c, w3"]
    assert all(math.isfinite(point.x) and math.isfinite(point.y) for point in plot.points)
