"""How the paper's findings are judged, on summaries made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripts_of import script

from mixprec import recipe as recipes

findings = script("reproduction_findings")


def write(folder: Path, differences: dict[str, Any], likelihood: dict[str, Any] | None = None) -> Path:
    names = dict.fromkeys([*differences, *(name for each in differences.values() for name in each)])
    summary = {"schema_version": 1, "variants": {name: {} for name in names}, "differences": differences}
    (folder / "summary.json").write_text(json.dumps(summary | {"likelihood": likelihood}), encoding="utf-8")
    return folder


def moved(difference: float, ci: list[float] | None) -> dict[str, Any]:
    return {"kl_difference": difference, "ci": ci}


@pytest.mark.parametrize(
    ("second", "expected"), [([0.1, 0.2], "holds"), ([-0.1, 0.2], "open"), ([-0.2, -0.1], "fails"), (None, "open")]
)
def test_all_comparisons_have_to_hold(second: list[float] | None, expected: str, tmp_path: Path) -> None:
    folder = write(tmp_path, {"a": {"b": moved(0.3, [0.2, 0.4])}, "c": {"d": moved(0.0, second)}})
    found = findings.worse(("a", "b"), ("c", "d"))(folder)
    assert found["verdict"] == expected
    assert found["numbers"]["KL a − b"] == {"difference": 0.3, "ci": [0.2, 0.4]}


@pytest.mark.parametrize(("ci", "expected"), [([0.01, 0.2], "fails"), ([-0.1, 0.2], "holds"), ([-0.2, -0.1], "holds")])
def test_harmless_is_what_makes_no_right_answer_less_likely(ci: list[float], expected: str, tmp_path: Path) -> None:
    nats = {name: {"gold_nll": {"difference": 0.1, "ci": [-1, 1]}} for name in findings.BENCHMARKS}
    nats["folio"] = {"gold_nll": {"difference": 0.1, "ci": ci}}
    likelihood = {"protocol": {}, "baseline": "original", "differences": {"w4": nats}}
    assert findings.harmless("w4")(write(tmp_path, {"w4": {}}, likelihood))["verdict"] == expected


def test_collapse_says_where_each_benchmark_is_hurt_first(tmp_path: Path) -> None:
    names = ["s_10", "s_50", "s_80"]
    nats = {
        name: {
            benchmark: {"gold_nll": {"difference": 0.1, "ci": [0.05, 0.2] if at >= hurt else [-0.1, 0.2]}}
            for hurt, benchmark in enumerate(findings.BENCHMARKS)
        }
        for at, name in enumerate(names)
    }
    grows = {"s_50": {"s_10": moved(1, [0.5, 1.5])}, "s_80": {"s_50": moved(1, [0.5, 1.5])}}
    folder = write(tmp_path, {"original": {}, "s_10": {}} | grows, {"baseline": "original", "differences": nats})
    found = findings.collapse(folder)
    assert found["verdict"] == "holds"
    assert list(found["numbers"].values())[-1] == dict(zip(findings.BENCHMARKS, [*names, None], strict=True))


def test_every_finding_asks_variants_that_its_recipe_has() -> None:
    for each in findings.FINDINGS:
        assert (each.recipe is None) == (each.judge is None) == bool(each.why)
        if each.recipe:
            assert f"small/{each.recipe}" in recipes.catalogue()
