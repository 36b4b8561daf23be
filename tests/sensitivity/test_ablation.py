"""mixprec ablate from a recipe to ablation.json and its page; cells are shared and not measured twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from scoring import Tiny
from tiny import write_traces
from typer.testing import CliRunner

from mixprec import recipe
from mixprec.cli import app
from mixprec.core.errors import UserError
from mixprec.plan import sensitivity
from mixprec.sensitivity.sets import cells_of
from mixprec.sensitivity.spec import AblationSpec


def write(tmp_path: Path, model: str, **changes: Any) -> Path:
    traces = str(write_traces(tmp_path / "t.jsonl"))
    data = {
        "model": {"id": model},
        "compress": {"method": "gptq", "calibration": {"traces": traces, "samples": 2, "tokens": 32}},
        "sensitivity": {"formats": ["w4g16"], "samples": 2},
        "ablation": {"each": "*_*", "sets": {"last_mlp": "last_mlp", "one": "1_up"}, "formats": ["w4g16"]},
        "evaluate": {"traces": {"source": traces}, "max_tokens": 40},
    }
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps({key: value for key, value in (data | changes).items() if value is not None}))
    return path


def test_sets_become_cells_and_none_is_there_twice(tiny: Tiny) -> None:
    spec = AblationSpec(each="*_up", sets={"one": "1_up", "mlp": "2_mlp"}, formats=["w2g16", "0.5"])  # type: ignore[arg-type]
    found = cells_of(spec, tiny.inventory)
    assert [(cell.name, cell.candidate, len(cell.addresses)) for cell in found] == [
        ("1_up", "w2g16", 1), ("2_up", "w2g16", 1), ("mlp", "w2g16", 3),
        ("1_up", "0.5", 1), ("2_up", "0.5", 1), ("mlp", "0.5", 3),
    ]  # fmt: skip


def test_a_set_that_has_the_name_of_another_module_is_refused(tiny: Tiny) -> None:
    spec = AblationSpec(each="*_*", sets={"1_up": "2_mlp"}, formats=["w2g16"])  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match=r"ablation.sets: 1_up: the module model.layers.0.mlp.up_proj has this name too"
    ):
        cells_of(spec, tiny.inventory)
    same = AblationSpec(each="*_*", sets={"1_up": "1_up"}, formats=["w2g16"])  # type: ignore[arg-type]
    assert len(cells_of(same, tiny.inventory)) == 14


def test_rounding_needs_no_calibration_data(tiny: Tiny, tmp_path: Path) -> None:
    found = []
    for name, calibrated in (("with", True), ("without", False)):
        folder = tmp_path / name
        folder.mkdir()
        path = write(folder, str(tiny.folder), sensitivity=None)
        data = json.loads(path.read_text())
        data["compress"]["method"] = "rtn"
        if not calibrated:
            del data["compress"]["calibration"]
        path.write_text(json.dumps(data))
        CliRunner().invoke(app, ["ablate", str(path), "--out", str(folder / "out")], catch_exceptions=False)
        found.append(json.loads((folder / "out" / "ablation.json").read_text()))
    assert found[0]["cells"] == found[1]["cells"]
    assert len(found[1]["cells"]) == 15
    gptq = write(tmp_path, str(tiny.folder), sensitivity=None, compress={"method": "gptq"})
    with pytest.raises(UserError, match="ablation: modules are solved on calibration data"):
        recipe.load(gptq)


def test_the_verb_measures_every_module_and_judges_the_scores(tiny: Tiny, tmp_path: Path) -> None:
    path, out = write(tmp_path, str(tiny.folder)), tmp_path / "out"
    CliRunner().invoke(app, ["ablate", str(path), "--out", str(out)], catch_exceptions=False)
    result = json.loads((out / "ablation.json").read_text())
    assert result["control"] == 0
    assert len(result["cells"]) == 14 + 1
    kl = {row["name"]: row["kl"]["all"]["mean"] for row in result["cells"]}
    assert kl["last_mlp"] > max(kl[f"2_{kind}"] for kind in ("gate", "up", "down")) * 0.5
    judged = {row["scorer"]: row for row in result["validity"] if row["metric"] == "kl" and row["target"] == "all"}
    table = sensitivity.load(out / "sensitivity" / "fisher.json", tiny.inventory)
    alone = {row["modules"][0]: row["kl"]["all"]["mean"] for row in result["cells"] if len(row["modules"]) == 1}
    wanted = spearmanr([table.scores[address]["w4g16"] for address in alone], list(alone.values())).statistic
    assert judged["fisher"]["modules"] == 14 and judged["fisher"]["spearman"] == pytest.approx(wanted)
    assert {"weight_error", "imatrix", "output_error", "hessian_trace"} <= set(judged)
    page = (out / "ablation.html").read_text()
    assert "Did the scores predict it?" in page and "last_mlp" in page
    files = {file: file.read_bytes() for file in (out / "cells").glob("*")}
    CliRunner().invoke(app, ["ablate", str(path), "--out", str(out)], catch_exceptions=False)
    assert {file: file.read_bytes() for file in files} == files
    assert json.loads((out / "ablation.json").read_text()) == result


@pytest.mark.slow
def test_a_run_shows_its_ablation_and_importance_with_and_without_weight_error(tiny: Tiny, tmp_path: Path) -> None:
    traces = {"source": str(tmp_path / "t.jsonl")}
    path, out = write(tmp_path, str(tiny.folder), traces=traces, importance={"resamples": 0}), tmp_path / "out"
    run = CliRunner().invoke(app, ["run", str(path), "--out", str(out)], catch_exceptions=False)
    result = json.loads((out / "ablation" / "ablation.json").read_text())
    judged = {row["scorer"]: row for row in result["validity"] if row["metric"] == "kl" and row["target"] == "all"}
    importance = json.loads((out / "importance" / "importance.json").read_text())
    shares = np.mean([np.array(e["scores"]) / sum(e["scores"]) for e in importance["behaviours"].values()], axis=0)
    kl = [row["kl"]["all"]["mean"] for row in result["cells"] if len(row["modules"]) == 1]
    assert judged["importance_alone"]["spearman"] == pytest.approx(spearmanr(shares, kl).statistic)
    assert judged["importance"]["spearman"] != judged["importance_alone"]["spearman"]
    report = (out / "report.html").read_text()
    for text in ("Importance × weight error", "Importance alone", "chance 7.1", "over modules and passages"):
        assert text in report and text in (out / "ablation" / "ablation.html").read_text()
    assert '<a href="ablation/ablation.html">' in report and '<a href="sensitivity/sensitivity.html">' in report
    for text in ("Largest damage", "Importance alone", f"{out}/ablation/ablation.html", f"{out}/sensitivity/"):
        assert text in run.output.replace("\n", "")
    again = CliRunner().invoke(app, ["report", str(out)], catch_exceptions=False)
    assert "Largest damage" in again.output

    # Without it in the recipe, what an earlier one left in the folder is not this run's.
    write(tmp_path, str(tiny.folder), traces=traces, importance={"resamples": 0}, ablation=None)
    run = CliRunner().invoke(app, ["run", str(path), "--out", str(out)], catch_exceptions=False)
    assert "ablation" not in (out / "report.html").read_text().partition("<h3>Recipe</h3>")[0]
    assert "Largest damage" not in run.output


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"evaluate": None}, "nothing to measure on"),
        ({"compress": {}}, "calibration"),
        ({"ablation": {"formats": ["w3g64"]}}, "nothing to change"),
        ({"ablation": {"each": "*_*", "formats": ["keep"]}}, "name formats"),
    ],
)
def test_what_cannot_be_ablated_is_refused(tmp_path: Path, change: Any, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        recipe.load(write(tmp_path, "m", **change))


def test_a_recipe_without_ablation_is_refused(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["ablate", str(write(tmp_path, "m", ablation=None)), "--out", str(tmp_path / "o")])
    assert isinstance(found.exception, UserError) and "ablation is missing" in str(found.exception)
