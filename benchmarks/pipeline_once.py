"""One of mixprec's pipelines in a process of its own, for pareto.py: a JSON job in, its figures out.

python benchmarks/pipeline_once.py JSON

Keys of the job: plan (a file), tokens (a safetensors file), model (the original), out, form (of the checkpoint) and
threads; if need be options (of the solve), tune_blocks, tune and, for the latter, validation and tuned_on (files
of samples). The figures, on the last line: wall and CPU seconds of mp.compress with all of these, reading and writing
included, and peak resident memory of the process.
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
from mixprec.compress.options import SolveOptions
from mixprec.tune.blockoptions import TuneBlocks
from mixprec.tune.options import TuneOptions

OPTIONS = {"options": SolveOptions, "tune_blocks": TuneBlocks, "tune": TuneOptions}


def main(job: dict[str, Any]) -> dict[str, float]:
    torch.set_num_threads(job["threads"])
    model = mp.Model(job["model"], dtype="float32")
    more: dict[str, Any] = {name: kind.model_validate(job[name]) for name, kind in OPTIONS.items() if name in job}
    if "tune" in job:
        more |= {name: samples(job[name]) for name in ("validation", "tuned_on") if name in job}
    wall, cpu = time.perf_counter(), time.process_time()
    plan, calibration = mp.Plan.load(model, job["plan"]), samples(job["tokens"])
    mp.compress(model, plan, job["out"], calibration=calibration, format=job["form"], **more)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": wall, "cpu_seconds": cpu, "peak_rss_bytes": peak}


def samples(path: str) -> mp.Calibration:
    return mp.Calibration(**vars(bench.calibration(Path(path))))


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
