"""The same recipe gives the same bytes: in another folder, working directory and process, and with two threads."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from mixprec.core import events, seals

_ROOT = Path(__file__).parents[2]
_CALIBRATION = {"samples": 4, "tokens": 24}
Ran = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def ran(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Runs one recipe through all stages in a process of its own; path in the run's folder -> sha256."""
    home = tmp_path_factory.mktemp("determinism")
    traces = tiny.write_traces(home / "traces.jsonl")
    formats = ["w2g16", "w4g16"]
    budget = {"effective_bits": 4.0, "candidates": formats, "exchange": {"samples": 2, "proposals": 2, "margin": 0}}
    recipe = tiny.write_recipe(
        home / "r.yaml", tiny_checkpoint, traces,
        compress={"method": "gptq", "calibration": {"traces": str(traces), **_CALIBRATION}},
        sensitivity={"scorer": "fisher", "formats": formats, "samples": 2},
        variants={
            "uniform": {"plan": {"default": "w2g16"}},
            "awq": {"plan": {"default": "w4g16", "method": "awq"}},
            "ours": {"plan": {"budget": budget}},
        },
    )  # fmt: skip

    def run(out: Path, cwd: Path, **variables: str) -> dict[str, str]:
        cwd.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1", **variables}
        command = [sys.executable, "-m", "mixprec", "run", str(recipe), "--out", str(out)]
        ended = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        folder = cwd / out
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != events.NAME)
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    return run


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("first") / "run"


@pytest.fixture(scope="module")
def first(ran: Ran, first_run: Path) -> dict[str, str]:
    return ran(first_run, first_run.parent, PYTHONHASHSEED="0")


def test_elsewhere_with_another_order_of_hashes(ran: Ran, first: dict[str, str], tmp_path: Path) -> None:
    assert any(name.endswith("model.safetensors") for name in first) and "report.html" in first
    again = ran(Path("runs") / "another name", tmp_path / "elsewhere", PYTHONHASHSEED="4711")
    assert differing(first, again) == []


def test_with_two_threads(ran: Ran, first: dict[str, str], first_run: Path, tmp_path: Path) -> None:
    """Threads add up parts of a sum: its last bits differ. What is decided by them here, plans and codes, does not."""
    again = ran(tmp_path / "run", tmp_path, OMP_NUM_THREADS="2")
    assert first.keys() == again.keys()
    other = differing(first, again)
    assert not [name for name in other if name.startswith("variants/") and Path(name).name != "result.json"]
    for name in other:
        if name.endswith(".json") and not name.startswith(".stages/"):
            one, two = (json.loads((folder / name).read_text()) for folder in (first_run, tmp_path / "run"))
            assert alike(one, two), name


def alike(one: Any, two: Any) -> bool:
    """The same JSON but for last bits of float32 numbers, and the seals over them."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(alike(one[key], two[key]) for key in one if key != seals.KEY)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(alike, one, two))
    if isinstance(one, float) and isinstance(two, float):
        return one == pytest.approx(two, rel=1e-3, abs=1e-6)
    return bool(one == two)


def differing(first: dict[str, str], second: dict[str, str]) -> list[str]:
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
