"""A recipe whose jobs are many, and a run of it wherever jobs are done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import tiny

from mixprec.core import events

ROOT = Path(__file__).parents[2]


def write(folder: Path, checkpoint: Path) -> Path:
    """Importance, tables of damage, an ablation, three variants, benchmarks of them."""
    folder.mkdir(parents=True, exist_ok=True)
    traces = tiny.write_traces(folder / "traces.jsonl")
    calibration = {"traces": str(traces), "samples": 4, "tokens": 16}
    budget = {"effective_bits": 4.5, "candidates": ["w3g16", "w4g16"], "exchange": {"proposals": 2, "samples": 2}}
    return tiny.write_recipe(
        folder / "many.yaml", checkpoint, traces,
        compress={"method": "gptq", "calibration": calibration},
        sensitivity={"formats": ["w3g16", "w4g16"], "samples": 2},
        ablation={"each": "*_up", "sets": {"last": "last_mlp"}, "formats": ["w3g16"], "resamples": 20},
        variants={
            "original": {"plan": {"default": "keep"}},
            "uniform": {"plan": {"default": "w3g16"}},
            "spent": {"plan": {"budget": budget}},
        },
    )  # fmt: skip


def start(recipe: Path, out: Path, *words: object, **more: str) -> subprocess.Popen[str]:
    """``mixprec run`` in a process of its own."""
    search = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    variables = os.environ | {"PYTHONPATH": search, "OMP_NUM_THREADS": "1", "COLUMNS": "300", **more}
    command = [str(word) for word in (sys.executable, "-m", "mixprec", "run", recipe, "--out", out, *words)]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(recipe: Path, out: Path, *words: object, **more: str) -> subprocess.CompletedProcess[str]:
    """The same, and its end."""
    process = start(recipe, out, *words, **more)
    told, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, told, errors)


def tree(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of all files but the log."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != events.NAME]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
