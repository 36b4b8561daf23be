"""What structure.py has compressed: SmolLM2-135M by every method, with the code of before and with the present code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

MODEL = "smollm2-135m-instruct"


class Job(NamedTuple):
    """A plan's method and the ``entry`` of each module, which differs where ``others`` (part of an address -> entry)
    say so; the checkpoint's format and further options of `mixprec compress`."""

    method: str
    entry: dict[str, str]
    format: str
    others: Mapping[str, dict[str, str]] = MappingProxyType({})
    options: tuple[str, ...] = ()


W3, W4, KEPT = {"format": "w3g64"}, {"format": "w4g64"}, {"format": "keep"}
JOBS: dict[str, Job] = {
    "gptq_w3g64": Job("gptq", W3, "compressed-tensors"),
    "rtn_w3g64": Job("rtn", W3, "compressed-tensors"),
    "rtn_w4g64_asym": Job("rtn", {"format": "w4g64_asym"}, "gptq"),
    "gptq_w4g64_asym": Job("gptq", {"format": "w4g64_asym"}, "gptq", options=("--no-act-order",)),
    "gptq_mixed": Job("gptq", W3, "dense", {"layers.29.": KEPT, "down_proj": W4}),
    "gptaq_w3g64": Job("gptaq", W3, "gptq"),
    "awq_w3g64": Job("awq", W3, "dense", {"layers.29.mlp": KEPT}),
    "awq_w4g64": Job("awq", W4, "compressed-tensors"),
    "anyk_any3g64": Job("anyk", {"format": "any3g64"}, "dense"),
    "ggml_q3_k": Job("ggml", {"format": "q4_0"}, "gguf", {"down_proj": {"format": "q3_k"}}),
    "sparsegpt_50": Job("sparsegpt", {**KEPT, "sparsity": "0.5"}, "dense"),
    "sparsegpt_24_w4g64": Job("sparsegpt", {**W4, "sparsity": "2:4"}, "dense"),
    "wanda_50": Job("wanda", {**KEPT, "sparsity": "0.5"}, "dense"),
    "magnitude_50": Job("magnitude", {**KEPT, "sparsity": "0.5"}, "dense"),
}
#: The job whose speed is compared, and how many times each side does it.
TIMED, TIMES = "gptq_w3g64", 2
SPEEDS = ("gptq_cpu_before", "gptq_cpu_after", "gptq_speed_ratio")
_RECIPE = f"""model: {{id: {MODEL}}}
plan: {{default: w3g64}}
compress: {{method: gptq, calibration: {{traces: "bundled:attribution"}}}}
"""


def cpu_seconds(repository: Path, folder: Path, *arguments: str) -> float:
    """CPU seconds of a Python process with the package of ``repository``, one thread, in ``folder``.

    Raises RuntimeError with the end of what it printed where it fails.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = {**os.environ, "PYTHONPATH": str(repository), **threads}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen([sys.executable, *arguments], cwd=folder, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"{' '.join(arguments)}, by the code in {repository}:\n{log.read()[-3000:]}")
    return usage.ru_utime + usage.ru_stime


@dataclass(frozen=True)
class Side:
    """The code in ``repository``; what it makes goes to ``folder``."""

    repository: Path
    folder: Path
    samples: int
    tokens: int

    def plan(self) -> str:
        """The text of plan.json for the first job."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "recipe.yaml").write_text(_RECIPE, encoding="utf-8")
        self._run("plan", "recipe.yaml", "--out", "plan.json")
        return (self.folder / "plan.json").read_text(encoding="utf-8")

    def compress(self, name: str, plan: str) -> float:
        """Write the checkpoint NAME; CPU seconds. ``plan``: of the first job, which tells the model's modules."""
        job, data = JOBS[name], json.loads(plan)
        entries = {
            address: next((entry for part, entry in job.others.items() if part in address), job.entry)
            for address in data["modules"]
        }
        text = json.dumps({**data, "method": job.method, "modules": entries})
        (self.folder / f"{name}.plan.json").write_text(text, encoding="utf-8")
        for left in (name, f".{name}.blocks"):  # nothing that other code made of it is taken up
            shutil.rmtree(self.folder / left, ignore_errors=True)
        data = ("--traces", "bundled:attribution", "--samples", str(self.samples), "--tokens", str(self.tokens))
        to = ("--format", job.format, "--out", name)
        return self._run("compress", f"{name}.plan.json", *data, *to, *job.options)

    def compress_once(self, name: str, plan: str) -> None:
        """As ``compress``, where the checkpoint, which appears when it is complete, is not there yet."""
        if not (self.folder / name).is_dir():
            self.compress(name, plan)

    def _run(self, *arguments: str) -> float:
        return cpu_seconds(self.repository, self.folder, "-m", "mixprec", *arguments)


def measure(base: Path, now: Path, work: Path, samples: int, tokens: int, only: Sequence[str]) -> dict[str, Any]:
    """The figures on plans, codes and speed, of the jobs that ``only`` names."""
    before, after = Side(base, work / base.name, samples, tokens), Side(now, work / "now", samples, tokens)
    plan = before.plan()
    figures: dict[str, Any] = {"plans_changed": int(plan != after.plan())}
    compared, changed = 0, {}
    for name in [name for name in JOBS if name in only]:
        with ThreadPoolExecutor() as pool:
            for run in (pool.submit(before.compress_once, name, plan), pool.submit(after.compress, name, plan)):
                run.result()
        old, new = tensors(before.folder / name), tensors(after.folder / name)
        found = differences(old, new)
        compared += len(old.keys() | new.keys())
        if found:
            changed[name] = found
        del old, new
        shutil.rmtree(after.folder / name)
        print(f"{name}: {told(found) if found else 'no tensor changed'}", flush=True)
    figures |= {
        "codes_compared": compared or None,
        "codes_changed": sum(map(len, changed.values())) if compared else None,
        "codes_changed_in": {name: told(found) for name, found in changed.items()},
    }
    return figures | (speed(before, after, plan) if TIMED in only else dict.fromkeys(SPEEDS))


def speed(before: Side, after: Side, plan: str) -> dict[str, float]:
    """The least CPU seconds of each side, which take turns; beside nothing else of ours."""
    seconds = [(before.compress(TIMED, plan), after.compress(TIMED, plan)) for _ in range(TIMES)]
    old, new = (min(side) for side in zip(*seconds, strict=True))
    return dict(zip(SPEEDS, (old, new, old / new), strict=True))


def tensors(checkpoint: Path) -> dict[str, bytes]:
    """Name -> the tensor's type, shape and bytes."""
    from gguf import GGUFReader
    from safetensors import safe_open

    found = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                tensor = file.get_tensor(name)
                flat = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
                found[name] = repr((tensor.dtype, tensor.shape)).encode() + flat
    for path in sorted(checkpoint.glob("*.gguf")):
        for tensor in GGUFReader(path).tensors:
            found[tensor.name] = repr((tensor.tensor_type, tensor.shape.tolist())).encode() + tensor.data.tobytes()
    if not found:
        raise RuntimeError(f"{checkpoint}: holds no tensors")
    return found


def differences(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> dict[str, float]:
    """Name of each tensor that differs -> which share of its bytes; 1 where there is one only, or another shape."""
    return {
        name: _share(old.get(name, b""), new.get(name, b""))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    }


def _share(old: bytes, new: bytes) -> float:
    if len(old) != len(new):
        return 1.0
    return float((np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8)).mean())


def told(found: Mapping[str, float]) -> str:
    """A line on the tensors that differ."""
    shares = f"{len(found)} tensors, {min(found.values()):.2g} to {max(found.values()):.2g} of their bytes"
    return f"{shares}: {', '.join(list(found)[:4])}{' …' if len(found) > 4 else ''}"
