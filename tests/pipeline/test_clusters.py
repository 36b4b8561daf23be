"""Runs whose jobs are done on a Ray cluster and by submitit: real processes, some of which are killed.

pip install 'mixprec[ray,slurm]'; pytest -m slow tests/pipeline/test_clusters.py
"""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import placed
import psutil
import pytest

from mixprec.core import events
from mixprec.pipeline.status import status

pytestmark = pytest.mark.slow


def needs(package: str, extra: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed: pip install 'mixprec[{extra}]'")


@pytest.fixture(scope="module")
def recipe(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return placed.write(tmp_path_factory.mktemp("placed"), tiny_checkpoint)


@pytest.fixture(scope="module")
def here(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run on this machine leaves."""
    out = tmp_path_factory.mktemp("here") / "run"
    done = placed.run(recipe, out)
    assert done.returncode == 0, done.stderr
    return placed.tree(out)


def meanwhile(process: subprocess.Popen[str], what: Callable[[], bool]) -> None:
    """Do something, once it can be done, while a process is at work."""
    while not what():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)


def kill(process: subprocess.Popen[str], name: str) -> bool:
    """Kill a process among the offspring of another by its name; False where there is none."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if name in " ".join(child.cmdline()):
                child.kill()
                return True
        except psutil.Error:
            continue
    return False


@needs("ray", "ray")
def test_a_ray_cluster_leaves_the_same_bytes(recipe: Path, here: dict[str, bytes], tmp_path: Path) -> None:
    """Two jobs at once, one of which is killed."""
    out = tmp_path / "run"
    process = placed.start(recipe, out, "--on", "ray", "--jobs", "2", RAY_ADDRESS="local", RAY_worker_niceness="0")
    meanwhile(process, lambda: kill(process, "ray::compress/uniform"))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "compress/uniform: whoever did it has died" in errors and "started again, 2 of 4" in errors
    assert placed.tree(out) == here
    found = status(out)
    assert found.state == "done" and {"cells/1of2", "cells/2of2", "compress/spent"} <= found.done.keys()
    assert {"prepare", "cells/2of2", "evaluate/spent"} <= {name for name, _ in events.read(out)[0]["stages"]}


@needs("submitit", "slurm")
def test_submitit_leaves_the_same_bytes(recipe: Path, here: dict[str, bytes], tmp_path: Path) -> None:
    """Two jobs at once; the run is stopped in the middle, and the same command continues it."""
    out, words = tmp_path / "run", ("--on", "slurm", "--slurm", "cluster=local", "--jobs", "2")
    process = placed.start(recipe, out, *words)
    made = {"event": "stage", "name": "reference", "state": "made"}
    meanwhile(process, lambda: any(made.items() <= row.items() for row in events.read(out)))
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 130 and "the same command continues" in errors, errors
    assert (out / ".jobs").is_dir() and not (out / "summary.json").exists()
    process = placed.start(recipe, out, *words)
    meanwhile(process, lambda: kill(process, "submitit.core._submit"))
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "has died (Slurm says" in errors
    assert placed.tree(out) == here


@needs("submitit", "slurm")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["cluster=moon"], "--slurm cluster=moon: not known"),
        ([], "there is no sbatch here"),
        (["cluster=local", "timeout_min=long"], "--slurm timeout_min=long: is no number"),
        (["cluster=local", "moon=1"], "Unknown argument 'moon'"),
    ],
)
def test_parameters_that_submitit_does_not_know(
    recipe: Path, tmp_path: Path, given: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    from mixprec import recipe as recipes
    from mixprec.core.errors import UserError
    from mixprec.pipeline.executors.placement import Placement
    from mixprec.pipeline.executors.slurm import OnSlurm
    from mixprec.pipeline.executors.worker import Order

    order = Order("", "r", str(tmp_path), None, str(tmp_path))
    asked = Placement("slurm", slurm=dict(each.split("=") for each in given))
    with pytest.raises(UserError, match=message):
        OnSlurm(order, recipes.load(recipe), asked)
