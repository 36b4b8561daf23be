"""Memory of a compression for calibration sets of two sizes: does it grow with the number of samples?

python benchmarks/structure_states.py [--memory-gb 0.03] --json OUT

SmolLM2-135M, GPTQ w3g64 in its first two blocks, all others kept; random tokens, float32, in a process of its own for
each size. Memory for states and activations is limited so far that neither set fits: states go to the disk, samples in
micro-batches. A peak is how much the process's memory rose while it compressed, above what imports took.

Keys of OUT
    states_peak_bytes_32    for 32 x 512 tokens
    states_peak_bytes_128   for 128 x 512 tokens
    states_growth           the second over the first: 1 where memory doesn't depend on the number of samples
    states_bytes_128        what the states of 128 x 512 tokens are in themselves
    states_limit_bytes      the limit
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import machine

#: Tokens of a sample, hidden size of SmolLM2-135M, bytes of a number.
TOKENS, HIDDEN, BYTES = 512, 576, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True)
    parser.add_argument("--memory-gb", type=float, default=0.03)
    parser.add_argument("--samples", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.samples:
        print(json.dumps(risen(arguments.samples, arguments.memory_gb)))
    else:
        machine.write(arguments.json, __file__, growth(arguments.memory_gb))


def growth(memory_gb: float) -> dict[str, float]:
    """Both peaks, each of a fresh process."""
    small, large = (_apart(samples, memory_gb) for samples in (32, 128))
    return {
        "states_peak_bytes_32": small,
        "states_peak_bytes_128": large,
        "states_growth": large / small,
        "states_bytes_128": 128 * TOKENS * HIDDEN * BYTES,
        "states_limit_bytes": memory_gb * 1e9,
    }


def _apart(samples: int, memory_gb: float) -> int:
    options = ["--samples", str(samples), "--memory-gb", str(memory_gb), "--json", "none"]
    done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def risen(samples: int, memory_gb: float) -> int:
    """Bytes by which the peak of this process's memory lies above what it had before."""
    import torch

    from mixprec.calibration.data import Calibration
    from mixprec.compress.stream import compress
    from mixprec.models.model import Model
    from mixprec.plan.rules import PlanSpec, build_plan

    torch.set_num_threads(1)
    model = Model("smollm2-135m-instruct")
    rules = [{"match": f"{layer}_*", "format": "w3g64"} for layer in (1, 2)]
    plan = build_plan(PlanSpec.model_validate({"default": "keep", "rules": rules}), model.decoder, model.id, "gptq")
    tokens = torch.randint(2, 49_000, (samples, TOKENS), generator=torch.Generator().manual_seed(0))
    calibration = Calibration(tokens, None, {}, str(samples))
    before = _memory("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        compress(Model(model.id), plan, Path(folder) / "out", calibration=calibration, memory_gb=memory_gb)
    return _memory("VmHWM") - before


def _memory(key: str) -> int:
    """VmRSS, VmHWM (its peak) of this process in bytes, as Linux counts them."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    main()
