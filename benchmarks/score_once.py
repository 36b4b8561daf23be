"""Scores for a budget in a process of their own, for allocation.py: a JSON job in, its figures out.

python benchmarks/score_once.py JSON

Keys of the job: model, tokens (a safetensors file), folder, scores (keys of a recipe's sensitivity), threads. The
figures, on the last line: wall and CPU seconds of everything (solving all candidates, sweep, tables, and the solver on
one budget), CPU seconds of the sweep and of a forward pass over the same tokens, peak resident memory. Where part of it
was there from a run that was killed, seconds_total and cpu_seconds are those of the rest, and ``resumed`` is true.
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

import torch
from bench import calibration

from mixprec.models.model import Model
from mixprec.plan.budget import budget_plan
from mixprec.plan.budgetspec import BudgetSpec
from mixprec.sensitivity import run as scoring
from mixprec.sensitivity.spec import SensitivitySpec


def main(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(job["threads"])
    folder = Path(job["folder"])
    resumed = folder.exists()
    spec = SensitivitySpec.model_validate(job["scores"])
    subject = scoring.Subject(Model(job["model"]), "gptq", calibration(Path(job["tokens"])), folder)
    wall, cpu = time.perf_counter(), time.process_time()
    candidates = subject.candidates(spec.treatments("gptq"))
    solved = time.process_time()
    table = scoring.score(subject, spec, candidates)["all"]
    swept = time.process_time()
    budget = BudgetSpec.model_validate({"effective_bits": 3.5, "candidates": job["scores"]["formats"]})
    budget_plan(budget, subject.model.decoder, job["model"], "gptq", table)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds_total": wall,
        "cpu_seconds": cpu,
        "sweep_cpu_seconds": swept - solved,
        "forward_cpu_seconds": forward(job["model"], subject, spec),
        "peak_rss_bytes": peak,
        "resumed": resumed,
    }


@torch.no_grad()
def forward(model: str, subject: scoring.Subject, spec: SensitivitySpec) -> float:
    """CPU seconds of a plain forward pass over the passages that were scored, logits included."""
    loaded = Model(model).load()
    started = time.process_time()
    for each in subject.scored(spec):
        loaded.model(input_ids=each.tokens[None], use_cache=False)
    return time.process_time() - started


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
