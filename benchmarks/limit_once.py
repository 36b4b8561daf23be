"""The least that GPTQ could take, for pareto.py: one forward pass and the second moments of all inputs.

python benchmarks/limit_once.py JSON

Keys of the job: model, tokens (a safetensors file), dtype, threads. The figures, on the last line: CPU seconds of the
blocks on all samples, one after the other, and of the products of as many inputs as every group of linears has.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from mixprec.core import environment

environment.settle()  # before torch is imported

import torch
from bench import calibration

from mixprec.models.model import Model


@torch.no_grad()
def main(job: dict[str, Any]) -> dict[str, float]:
    torch.set_num_threads(job["threads"])
    model = Model(job["model"], dtype=job["dtype"])
    tokens, body = calibration(Path(job["tokens"])).tokens, model.load().model.base_model
    start = time.process_time()
    for sample in tokens:
        body(input_ids=sample[None], use_cache=False)
    forward = time.process_time() - start
    widths = [group[0].in_features for block in model.decoder.blocks for group in block.groups]
    inputs = {width: torch.randn(tokens.shape[1], width).to(getattr(torch, job["dtype"])) for width in set(widths)}
    sums = {width: torch.zeros(width, width) for width in inputs}
    start = time.process_time()
    for width in widths * len(tokens):
        sums[width] += inputs[width].T @ inputs[width]
    return {"forward_cpu_seconds": forward, "moments_cpu_seconds": time.process_time() - start}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
