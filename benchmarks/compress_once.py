"""One compression by mixprec in a process of its own, for compression.py: a JSON job in, its figures out.

python benchmarks/compress_once.py JSON

Keys of the job: method, format, sparsity (or null), or plan (a file), tokens (a safetensors file, with the tokens'
weights where it has some), out, threads; model, dtype, options and form (of the checkpoint; default dense) if need be.
The figures, on the last line: wall and CPU seconds of the call that reads the checkpoint, compresses it and writes the
new one; the peak of resident memory of the process, and above what it was before the call, over the bytes of one block
in the type that is computed in; medians of the modules' errors.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from mixprec.core import environment

environment.settle()  # before torch is imported

import torch

from mixprec.calibration.data import Calibration
from mixprec.checkpoint.formats import checkpoint_format
from mixprec.compress.options import SolveOptions
from mixprec.compress.stream import compress
from mixprec.core import artifacts
from mixprec.models.config import load_config
from mixprec.models.locate import BUNDLED
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import load_plan


def main(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    model = job.get("model", BUNDLED)
    inventory = decoder_of(load_config(model))
    if "plan" in job:
        plan = load_plan(Path(job["plan"]), inventory)
    else:
        spec = PlanSpec.model_validate({"default": job["format"], "sparsity": job["sparsity"]})
        plan = build_plan(spec, inventory, model, job["method"])
    tokens, _ = artifacts.load_tensors(Path(job["tokens"]))
    weights = tokens.get("weights")
    parts = [each.tolist() for each in (tokens["tokens"], weights) if each is not None]
    calibration = Calibration(tokens["tokens"], weights, {}, artifacts.fingerprint(*parts))
    options = SolveOptions.model_validate(job.get("options", {}))
    before = psutil.Process().memory_info().rss
    wall, cpu = time.perf_counter(), time.process_time()
    source, form = Model(model, dtype=job.get("dtype", "float32")), checkpoint_format(job.get("form", "dense"))
    reports = compress(source, plan, Path(job["out"]), calibration=calibration, options=options, format=form)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = whole - before
    block = sum(module.weights for module in inventory.linears if module.layer == 1) * 4
    errors = [report.output_error for report in reports.values() if report.output_error is not None]
    return {
        "seconds": wall,
        "cpu_seconds": cpu,
        "peak_rss_bytes": whole,
        "peak_bytes": peak,
        "peak_bytes_over_block": peak / block,
        "median_output_error": statistics.median(errors) if errors else None,
        "median_relative_error": statistics.median(report.relative_error for report in reports.values()),
        "retries": sum(report.retries for report in reports.values()),
        "fallbacks": sum(bool(report.fallback) for report in reports.values()),
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
