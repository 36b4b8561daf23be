"""Blocks tuned in recipes, on the command line and from Python."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from safetensors.torch import load_file

import mixprec as mp
from mixprec import cli, pipeline, recipe

TUNED = {"steps": 12, "batch": 2, "validation": 2, "reach": 0.3, "rate": 0.01}


def run(path: Path, parts: dict[str, Any]) -> dict[str, Any]:
    path.write_text(json.dumps(parts), encoding="utf-8")
    return pipeline.Run(recipe.load(path), path.read_text(), path.stem, path.parent / "run", None).run()


def recipe_for(model: Path, tmp_path: Path) -> dict[str, Any]:
    traces = str(tiny.write_traces(tmp_path / "traces.jsonl"))
    return {
        "model": {"id": str(model)},
        "compress": {"tune_blocks": TUNED, "calibration": {"traces": traces, "samples": 6, "tokens": 16}},
        "variants": {
            "original": {"plan": {"default": "keep"}},
            "rounded": {"plan": {"default": "w3g16"}},
            "plain": {"plan": {"default": "w3g16"}, "tune_blocks": False},
        },
        "evaluate": {"traces": {"source": traces}},
    }


def test_a_recipe_tunes_and_tells_what_was_gained(tiny_checkpoint: Path, tmp_path: Path) -> None:
    parts, folder = recipe_for(tiny_checkpoint, tmp_path), tmp_path / "run" / "variants" / "rounded"
    first = run(tmp_path / "r.yaml", parts)["variants"]["rounded"]
    tuned = load_file(folder / "checkpoint" / "model.safetensors")
    quality = json.loads((folder / "quality.json").read_text())
    assert min(quality[address]["tuned"] for address in quality if address.startswith("model.")) < 1
    assert first["quality"]["tuned"] <= 1
    plain = load_file(folder.parent / "plain" / "checkpoint" / "model.safetensors")
    assert any((plain[name] != tuned[name]).any() for name in plain)
    assert "squared error of blocks, tuned / solved" in (tmp_path / "run" / "report.html").read_text()
    card = json.loads((folder / "checkpoint" / "mixprec.json").read_text())
    assert card["compress"]["tune_blocks"]["steps"] == 12
    made = (folder / "quality.json").stat().st_mtime_ns
    run(tmp_path / "r.yaml", parts)
    assert (folder / "quality.json").stat().st_mtime_ns == made
    del parts["compress"]["tune_blocks"]
    plainly = run(tmp_path / "r.yaml", parts)["variants"]["rounded"]
    assert (plainly["quality"]["tuned"], plainly["quality"]["untuned"]) == (None, 0)
    now = load_file(folder / "checkpoint" / "model.safetensors")
    assert all((plain[name] == now[name]).all() for name in plain)


def test_a_recipe_says_what_tuning_lacks(tiny_checkpoint: Path, tmp_path: Path) -> None:
    parts, path = recipe_for(tiny_checkpoint, tmp_path), tmp_path / "r.yaml"
    parts["compress"]["calibration"]["samples"] = 2
    path.write_text(json.dumps(parts))
    with pytest.raises(
        mp.UserError, match=r"variant rounded: tune_blocks.validation: 2 of 2 calibration samples leave none"
    ):
        recipe.load(path)
    del parts["compress"]["calibration"]
    path.write_text(json.dumps(parts))
    with pytest.raises(mp.UserError, match=r"tune_blocks looks at .*; add compress: \{calibration"):
        recipe.load(path)
    parts["compress"]["tune_blocks"] = {"codes": False, "scales": False}
    path.write_text(json.dumps(parts))
    with pytest.raises(mp.UserError, match=r"compress.tune_blocks: nothing to tune; leave codes or scales: true"):
        recipe.load(path)


def test_from_python_and_the_command_line(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(tiny.TEXT * 3)
    model = mp.Model(tiny_checkpoint)
    plan, calibration = mp.plan(model, "w3g16"), mp.calibrate(model, text="text.txt", samples=6, tokens=16)
    plan.save("plan.json")
    options = mp.TuneBlocks(steps=12)
    mp.compress(model, plan, "python", calibration=calibration, tune_blocks=options)
    command = ["mixprec", "compress", "plan.json", "--samples", "6", "--tokens", "16", "--tune-blocks", "12"]
    monkeypatch.setattr(sys, "argv", [*command, "--text", "text.txt", "--out", "line"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    python, line = (load_file(Path(name) / "model.safetensors") for name in ("python", "line"))
    assert all((python[name] == line[name]).all() for name in python)
    loaded = model.load().model
    mp.quantize_(loaded, plan, calibration, tune_blocks=options)
    assert all((loaded.get_parameter(name) == python[name].float()).all() for name in python)
    monkeypatch.setattr(sys, "argv", [*command, "--out", "other"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "tuning blocks looks at their outputs and needs calibration data" in capsys.readouterr().err
