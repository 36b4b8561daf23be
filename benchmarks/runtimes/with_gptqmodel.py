"""Load GPTQ and AWQ checkpoints with GPTQModel on a CPU; runs in the environment ``gptqmodel`` of peers/build.sh.

    python with_gptqmodel.py JOB.json RESULT.json

JOB: ``checkpoints`` (folders), ``dtype`` (float16 or bfloat16), ``reader`` (gptqmodel, or transformers), ``prompt``
(token ids), ``passages`` (lists of token ids). RESULT: folder -> ``logits`` (of the prompt's last token) and ``nll``
(mean negative log-likelihood of the passages' tokens but their first), or ``error``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# It asks for two workers at least; what it compiles on first use stays with the environment.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ.setdefault("GPTQMODEL_TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "extensions"))

import torch
from answers import write_answers


def load(folder: str, job: dict[str, Any]) -> torch.nn.Module:
    """The model in evaluation mode."""
    dtype = getattr(torch, job["dtype"])
    if job["reader"] == "transformers":
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu").eval()
    from gptqmodel import BACKEND, GPTQModel

    return GPTQModel.load(folder, device="cpu", backend=BACKEND.TORCH, dtype=dtype).model.eval()


@torch.no_grad()
def look_at(folder: str, job: dict[str, Any]) -> dict[str, Any]:
    """What one checkpoint answers."""
    model = load(folder, job)
    logits = model(torch.tensor([job["prompt"]])).logits[0, -1].float()
    total, count = 0.0, 0
    for ids in job["passages"]:
        tokens = torch.tensor([ids])
        scores = model(tokens).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(scores, tokens[0, 1:], reduction="sum"))
        count += len(ids) - 1
    return {"logits": logits.tolist(), "nll": total / max(1, count)}


if __name__ == "__main__":
    write_answers(json.loads(Path(sys.argv[1]).read_text()), look_at, Path(sys.argv[2]))
