"""importance.json: what is refused, and shares, ranks and agreement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixprec.core.errors import UserError
from mixprec.importance import artifact

SCORES = st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=40)


def build(*scores: list[float]) -> dict[str, Any]:
    """An importance artifact with one behaviour for each list of scores."""
    modules = [
        {"address": f"model.layers.{i}.mlp.up_proj", "label": f"{i + 1}_up", "layer": i + 1, "kind": "up"}
        for i in range(len(scores[0]))
    ]
    behaviours = {
        f"b{n}": {"scores": list(each), "spans": int(any(each)), "traces": 1} for n, each in enumerate(scores)
    }
    return {"schema_version": 1, "modules": modules, "behaviours": behaviours}


def write(folder: Path, data: Any) -> Path:
    path = folder / "importance.json"
    path.write_text(json.dumps(data))
    return path


def test_what_was_written_is_loaded(tmp_path: Path) -> None:
    data = build([1.0, 2.0], [0.0, 0.0])
    assert artifact.load(write(tmp_path, data)) == data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version is 2"),
        ({"modules": None}, r"is no importance\.json"),
        ({"modules": [{"address": "x"}] * 2}, r"is no importance\.json"),
        ({"behaviours": {}}, r"is no importance\.json"),
        ({"behaviours": {"b0": [1, 2]}}, r"behaviours\.b0\.scores is missing"),
        ({"behaviours": {"b0": {"scores": [1.0]}}}, r"behaviours\.b0\.scores has 1 values for 2 modules"),
        ({"behaviours": {"b0": {"scores": [1.0, None]}}}, r"scores\[1\] is None"),
        ({"behaviours": {"b0": {"scores": [1.0, -1]}}}, r"scores\[1\] is -1"),
        ({"behaviours": {"b0": {"scores": [float("nan"), 1]}}}, r"holds NaN"),
    ],
)
def test_broken_artifacts_are_the_users_error(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path, build([1.0, 2.0]) | change)
    with pytest.raises(UserError, match=rf"importance\.json: .*{message}|{message}"):
        artifact.load(path)


@pytest.mark.parametrize("data", [[], 3, {"plan": 1}])
def test_other_files_are_the_users_error(data: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="schema_version is None"):
        artifact.load(write(tmp_path, data))
    with pytest.raises(UserError, match="can't be read"):
        artifact.load(tmp_path / "none.json")


def test_scores_by_address_leave_out_behaviours_without_spans() -> None:
    assert artifact.scores_of(build([1.0, 2.0], [0.0, 0.0])) == {
        "b0": {"model.layers.0.mlp.up_proj": 1.0, "model.layers.1.mlp.up_proj": 2.0}
    }


def test_top_modules_have_shares_and_intervals_of_the_rank() -> None:
    data = build([1.0, 3.0], [0.0, 0.0])
    data["behaviours"]["b0"]["rank_intervals"] = [[2, 2], [1, 2]]
    found = artifact.top_modules(data)
    assert [(m["rank"], m["label"], m["relative"], m["rank_interval"]) for m in found["b0"]["top_modules"]] == [
        (1, "2_up", 0.75, [1, 2]),
        (2, "1_up", 0.25, [2, 2]),
    ]
    assert found["b1"]["top_modules"] == []
    json.dumps(found)
    assert artifact.top_modules(build([1.0]))["b0"]["top_modules"][0]["rank_interval"] is None


@given(SCORES)
def test_relative_importance_sums_to_one(scores: list[float]) -> None:
    assert artifact.relative(scores).sum() == pytest.approx(1 if any(scores) else 0)


@given(SCORES)
def test_ranks_are_a_permutation_in_falling_order(scores: list[float]) -> None:
    ranks = artifact.ranks(scores)
    assert sorted(ranks) == list(range(1, len(scores) + 1))
    order = np.argsort(ranks)
    assert list(order) == sorted(range(len(scores)), key=lambda i: (-scores[i], i))


def test_agreement() -> None:
    up, down = [float(x) for x in range(1, 21)], [float(x) for x in range(20, 0, -1)]
    assert artifact.agreement(up, up) == {"spearman": pytest.approx(1), "top10_overlap": 10}
    assert artifact.agreement(up, down) == {"spearman": pytest.approx(-1), "top10_overlap": 0}
    assert artifact.agreement(up, [1.0] * 20) == {"spearman": None, "top10_overlap": None}
    one, other = build(up, up), build(up, down)
    assert artifact.compare(one, other)["b1"]["top10_overlap"] == 0
    del other["behaviours"]["b1"]
    assert list(artifact.compare(one, other)) == ["b0"]
