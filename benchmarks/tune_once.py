"""One tuning by mixprec in a process of its own, for pareto.py: a JSON job in, its figures out.

python benchmarks/tune_once.py JSON

Keys of the job: checkpoint (a packed folder), model (the original), out, tokens and validation (safetensors files),
options (of tuning), threads. The figures, on the last line: wall and CPU seconds of the call, with its reading and
writing of files; peak resident memory of the process.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from mixprec.core import environment

environment.settle()  # before torch is imported

import bench
import torch

import mixprec as mp
from mixprec.tune.options import TuneOptions


def main(job: dict[str, Any]) -> dict[str, float]:
    torch.set_num_threads(job["threads"])
    seen, validation = (mp.Calibration(**vars(bench.calibration(Path(job[key])))) for key in ("tokens", "validation"))
    options = TuneOptions.model_validate(job["options"])
    wall, cpu = time.perf_counter(), time.process_time()
    mp.tune(job["checkpoint"], job["model"], job["out"], calibration=seen, validation=validation, options=options)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": wall, "cpu_seconds": cpu, "peak_rss_bytes": peak}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
