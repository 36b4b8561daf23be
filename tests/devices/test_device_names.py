"""Devices that can't be used are refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from mixprec import cli
from mixprec import recipe as recipes
from mixprec.core.errors import UserError
from mixprec.models.model import Model


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "meta"])
def test_what_is_no_device(tiny_checkpoint: Path, name: str) -> None:
    model = Model(tiny_checkpoint, device=name)
    for load in (model.load, model.open_blocks):
        with pytest.raises(UserError, match=r"device: '.*' is none; write cpu, cuda, mps, or auto"):
            load()


def test_a_device_that_is_not_in_this_machine(tiny_checkpoint: Path) -> None:
    absent = "cuda:99" if torch.cuda.is_available() else "cuda"
    with pytest.raises(UserError, match=f"device: {absent} is not in this machine"):
        Model(tiny_checkpoint, device=absent).load()


PARTS: dict[str, dict[str, Any]] = {
    "plan": {"plan": {"default": "w3g16"}},
    "sensitivity": {"sensitivity": {"formats": ["w3g16"]}},
    "ablation": {"ablation": {"each": "1_q", "formats": ["w3g16"]}},
}


def written(path: Path, **parts: Any) -> Path:
    traces = {"source": "x.jsonl"}
    calibration = {"calibration": {"traces": "x.jsonl", "samples": 4, "tokens": 16}}
    recipe = {"model": {"id": "m", "device": "mps"}, "traces": traces, "evaluate": {"traces": traces}}
    path.write_text(yaml.safe_dump(recipe | {"importance": {}, "compress": calibration} | parts), encoding="utf-8")
    return path


@pytest.mark.parametrize("part", PARTS)
def test_a_recipe_that_needs_float64_on_mps(tmp_path: Path, part: str) -> None:
    with pytest.raises(UserError, match=f"model.device: mps: {part} needs float64"):
        recipes.load(written(tmp_path / "r.yaml", **PARTS[part]))
    assert recipes.load(written(tmp_path / "r.yaml")).importance  # which works without


@pytest.mark.parametrize("verb", [["compress", "plan.json", "--out", "x"], ["evaluate", "x"]])
def test_verbs_that_need_float64_on_mps(verb: list[str]) -> None:
    found = CliRunner().invoke(cli.app, [*verb, "--device", "mps"])
    assert isinstance(found.exception, UserError)
    assert f"{verb[0]} needs float64" in str(found.exception)
