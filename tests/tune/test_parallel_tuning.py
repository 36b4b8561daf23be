"""Two processes tune as one does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

import mixprec as mp


@pytest.mark.slow
def test_two_processes_end_with_the_numbers_of_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    traces = tiny.write_traces(tmp_path / "traces.jsonl")
    model = mp.Model(tiny_checkpoint)
    mp.compress(model, mp.plan(model, "w2g16"), tmp_path / "solved", format="compressed-tensors")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    one = [sys.executable, "-m", "mixprec"]
    two = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    two += ["--main_process_port", port, "-m", "mixprec"]
    for name, command in (("one", one), ("two", two)):
        verb = ["tune", tmp_path / "solved", "--reference", tiny_checkpoint, "--traces", traces, "--samples", 6]
        more = ["--tokens", 24, "--validation", 3, "--batch", 2, "--rate", 0.005, "--dtype", "float32"]
        done = subprocess.run(
            [*command, *map(str, [*verb, *more, "--out", tmp_path / name])],
            env={key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
            | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=2**-9, atol=1e-5)
