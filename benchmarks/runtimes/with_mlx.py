"""Load MLX checkpoints with mlx-lm on a CPU, and make some; runs in the environment ``mlx`` of peers/build.sh.

    python with_mlx.py JOB.json RESULT.json

JOB: ``checkpoints`` (folders), ``prompt`` (token ids), ``passages`` (lists of token ids); ``convert``: folder ->
``source``, ``bits``, ``group_size`` and ``grids`` (part of a module's path -> its grid, or false), which mlx-lm makes
first. RESULT: folder -> ``logits`` (of the prompt's last token, computed in float32) and ``nll`` (mean negative
log-likelihood of the passages' tokens but their first), or ``error``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
from answers import write_answers
from mlx.utils import tree_map
from mlx_lm import convert
from mlx_lm.utils import load_model


def make(out: str, said: dict[str, Any]) -> None:
    """One checkpoint by mlx-lm's own quantizer."""

    def grid(path: str, module: Any) -> Any:
        return next((own for part, own in said["grids"].items() if part in path), True)

    convert(
        said["source"],
        mlx_path=out,
        quantize=True,
        q_bits=said["bits"],
        q_group_size=said["group_size"],
        quant_predicate=grid,
    )


def look_at(folder: str, job: dict[str, Any]) -> dict[str, Any]:
    """What one checkpoint answers."""
    model, _ = load_model(Path(folder))
    # Its kernels compute in the type of the scales; in float32 nothing but the order of sums differs.
    model.update(tree_map(lambda each: each.astype(mx.float32) if _is_float(each) else each, model.parameters()))
    logits = model(mx.array([job["prompt"]]))[0, -1]
    total, count = 0.0, 0
    for ids in job["passages"]:
        scores = model(mx.array([ids]))[0, :-1]
        chosen = mx.take_along_axis(scores, mx.array(ids[1:])[:, None], axis=-1)[:, 0]
        total += float((mx.logsumexp(scores, axis=-1) - chosen).sum())
        count += len(ids) - 1
    return {"logits": logits.tolist(), "nll": total / max(1, count)}


def _is_float(array: mx.array) -> bool:
    return bool(mx.issubdtype(array.dtype, mx.floating))


def main(job_file: str, result_file: str) -> None:
    """Make what the job says, then look at every checkpoint."""
    job = json.loads(Path(job_file).read_text())
    for out, said in job.get("convert", {}).items():
        make(out, said)
    write_answers(job, look_at, Path(result_file))


if __name__ == "__main__":
    main(*sys.argv[1:])
