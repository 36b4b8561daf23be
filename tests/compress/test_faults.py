"""A process that dies while a checkpoint is written, and a disk that is too small for it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mixprec.compress.stream import compress
from mixprec.models.model import Model
from mixprec.plan.schema import Plan

Make = Callable[..., Path]
Planner = Callable[..., Plan]

#: Compresses in a process of its own, which kills itself at the module whose address is the last argument.
_PROGRAM = """
import os, sys
from pathlib import Path
from mixprec.compress.stream import compress
from mixprec.models.model import Model
from mixprec.plan.schema import Plan
source, plan, out, deadly = sys.argv[1:]
kill = lambda address, _: address == deadly and os.kill(os.getpid(), 9)
compress(Model(source), Plan.model_validate_json(Path(plan).read_text()), Path(out), on_module=kill)
"""


def run(arguments: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(argument) for argument in arguments], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture
def program(tmp_path: Path) -> list[str | Path]:
    (tmp_path / "program.py").write_text(_PROGRAM)
    return [sys.executable, tmp_path / "program.py"]


def test_a_killed_run_leaves_nothing_that_looks_finished(
    checkpoint: Make, planner: Planner, tmp_path: Path, program: list[str | Path]
) -> None:
    source, out, plan_file = checkpoint(shard="10KB"), tmp_path / "work" / "out", tmp_path / "plan.json"
    plan = planner(source, "w3g16")
    plan_file.write_text(plan.model_dump_json())
    killed = run([*program, source, plan_file, out, "model.layers.1.mlp.up_proj"])
    assert killed.returncode == -9, killed.stderr
    assert sorted(path.name for path in out.parent.iterdir()) == [".out.blocks", ".out.lock"]
    assert [path.name for path in (out.parent / ".out.blocks").iterdir()] == ["00001.safetensors"]
    compress(Model(source), plan, out)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_small_disk(checkpoint: Make, planner: Planner, tmp_path: Path, program: list[str | Path]) -> None:
    small, plan_file = tmp_path / "small", tmp_path / "plan.json"
    small.mkdir()
    # A small file system that only the child sees and that goes with it.
    inside = ["unshare", "--mount", "--map-root-user", "sh", "-ec"]
    mount = 'mount -t tmpfs -o size=16k none "$0"; '
    if shutil.which("unshare") is None or run([*inside, mount, small]).returncode:
        pytest.skip("needs unshare and the right to mount a small file system")
    source = checkpoint()
    plan_file.write_text(planner(source, "w3g16").model_dump_json())
    script = mount + '"$@" || ls -A "$0"'
    full = run([*inside, script, small, *program, source, plan_file, small / "out", ""])
    assert "UserError" in full.stderr
    assert re.search(rf"{small / 'out'}: writing it takes [0-9,]+ bytes, {small} has 16,384 free; free", full.stderr)
    assert not full.stdout  # it was told before any work
