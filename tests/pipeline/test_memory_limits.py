"""A run without enough memory: what is refused before any work, what is said where memory runs out, what lowers it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from mixprec import cli, pipeline, recipe
from mixprec.core.errors import UserError
from mixprec.pipeline import memory


@pytest.fixture
def path(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    traces = str(tiny.write_traces(tmp_path / "traces.jsonl"))
    parts: dict[str, Any] = {
        "model": {"id": str(tiny_checkpoint)},
        "traces": {"source": traces},
        "importance": {"resamples": 0},
        "compress": {"method": "gptq", "calibration": {"traces": traces, "samples": 6, "tokens": 24}},
        "variants": {"uniform": {"plan": {"default": "w4g16"}}},
        "evaluate": {"traces": {"source": traces}},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(parts))
    return tmp_path / "r.yaml"


def test_a_stage_beyond_the_limit_is_refused_with_what_lowers_it(path: Path) -> None:
    asked = ["evaluate.benchmarks=[folio]", "evaluate.max_new_tokens=20000000"]
    chosen = recipe.load(path, asked)
    found = pipeline.checked(chosen)
    needs = memory.needs(chosen, found)
    assert {"attribute", "compress/uniform", "evaluate/uniform", "benchmarks/uniform", "reference"} == set(needs)
    assert not list(memory.refuse(chosen, found, max(needs.values())))
    assert not list(memory.refuse(chosen, found, None))
    (told,) = memory.refuse(chosen, found, max(needs.values()) - 1)
    assert "stage benchmarks/uniform takes about" in told and "evaluate.engine.batch=1 (" in told
    # The setting brings what is said of it.
    changed = recipe.load(path, [*asked, "evaluate.engine.batch=1"])
    now = memory.needs(changed, pipeline.checked(changed))["benchmarks/uniform"]
    assert f"evaluate.engine.batch=1 ({memory.size(now)})" in told
    refused = list(memory.refuse(chosen, found, 1000))
    assert len(refused) == len(needs)
    assert any("no setting lowers it" in each for each in refused)


def test_running_out_names_stage_and_settings(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def much(*_: Any, **__: Any) -> None:
        torch.empty(10**15, dtype=torch.uint8)

    monkeypatch.setattr("mixprec.pipeline.importance.attribute", much)
    monkeypatch.setattr(sys, "argv", ["mixprec", "run", str(path), "--out", str(path.parent / "run")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2 and "Traceback" not in told
    assert "stage attribute: out of memory (1000000000000000 bytes more were asked for)" in told
    assert "by the estimate it takes" in told and "the same command goes on" in told


def test_max_memory_is_kept(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="max_memory: -1 is no amount"):
        from mixprec.api.runs import run

        run(path, path.parent / "run", max_memory=-1)
    out = str(path.parent / "run")
    monkeypatch.setattr(sys, "argv", ["mixprec", "run", str(path), "--out", out, "--max-memory", "0.1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and "--max-memory: stage attribute takes about" in capsys.readouterr().err
    assert not (path.parent / "run").exists()
