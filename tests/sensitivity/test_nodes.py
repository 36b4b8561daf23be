"""Two machines with one process each: both are the first of their machine, one of them writes what they share."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from launching import launched
from tiny import write_traces

#: Runs a verb as one process of several and logs the files that it publishes. Its device has a name of its own, as
#: the GPUs of one machine have.
_PROGRAM = """
import os, sys
from pathlib import Path
from mixprec import cli
from mixprec.core import processes, publish
original, log = publish.atomic_path, Path(os.environ["LOG"])
def logged(path, *rest, **more):
    with log.open("a") as file:
        file.write(f"{path}\\n")
    return original(path, *rest, **more)
publish.atomic_path = logged
join = processes.join
processes.join = lambda device: join(device) and ("cpu:0" if processes.rank() else "cpu")
cli.main()
"""


def on_two_machines(arguments: list[str], folder: Path, outs: tuple[Path, Path]) -> list[Any]:
    """What the two processes come to, ``outs`` being what each of them takes for --out: (exit code, errors, files)."""
    commands = [[sys.executable, "-c", _PROGRAM, *arguments, "--out", out] for out in outs]
    done = launched(commands, machines=2, LOG=str(folder / "log{rank}"), COLUMNS="300")
    logs = [(folder / f"log{rank}") for rank in range(2)]
    return [
        (ended.returncode, ended.stderr, log.read_text().split("\n")[:-1] if log.exists() else [])
        for ended, log in zip(done, logs, strict=True)
    ]


@pytest.fixture
def arguments(tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    traces = str(write_traces(tmp_path / "t.jsonl"))
    recipe = {
        "model": {"id": str(tiny_checkpoint)},
        "traces": {"source": traces},
        "compress": {"method": "gptq", "calibration": {"traces": traces, "samples": 2, "tokens": 32}},
        "sensitivity": {"formats": ["w4g16"], "samples": 2, "behaviours": ["backtracking"]},
        "ablation": {"sets": {"last_mlp": "last_mlp", "one": "1_up"}, "formats": ["w4g16"]},
        "evaluate": {"traces": {"source": traces}, "max_tokens": 40},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    return ["ablate", str(tmp_path / "r.yaml")]


def test_one_process_of_all_machines_writes_what_they_share(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, second = on_two_machines(arguments, tmp_path, (out, out))
    assert first[0] == second[0] == 0, first[1] + second[1]
    written = {Path(name).relative_to(out).as_posix() for name in first[2]}
    assert {"ablation.json", "spans.jsonl", "evaluation/spans.jsonl", ".stages/annotate.json"} <= written
    assert {f"sensitivity/candidates/0000{layer}.safetensors" for layer in (1, 2)} <= written
    theirs = {Path(name).relative_to(out).as_posix() for name in second[2]}
    assert {name.rpartition("/")[0] for name in theirs} == {"sensitivity/sums"}  # its share of the passages
    assert not theirs & written
    cells = [json.loads(line)["cell"]["name"] for file in (out / "cells").iterdir() for line in file.open()]
    assert sorted(cells) == ["last_mlp", "no change", "one"]


def test_machines_without_a_common_folder_are_told(arguments: list[str], tmp_path: Path) -> None:
    first, second = on_two_machines(arguments, tmp_path, (tmp_path / "here", tmp_path / "there"))
    assert second[0] == 2 and first[0] != 0
    assert "all machines need one folder for the run: give --out on storage that they share" in second[1]
    assert "Traceback" not in second[1]
    shutil.rmtree(tmp_path / "here")
    assert not list((tmp_path / "there").rglob("*.safetensors"))
