"""AutoRound as an engine: signed gradient descent on the rounding, or plain rounding with ``iters`` 0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from auto_round import AutoRound
from run import calibration, load_model
from transformers import AutoTokenizer


def load(job: dict[str, Any]) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(job["model"], local_files_only=True)
    return {"model": load_model(job), "tokenizer": tokenizer}


def quantize(loaded: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    options = arguments(job)
    tokens = calibration(job)
    if tokens is None:
        raise SystemExit("AutoRound wants calibration tokens")
    rows = [{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in tokens]
    compressor = AutoRound(
        loaded["model"],
        loaded["tokenizer"],
        dataset=rows,
        nsamples=len(rows),
        seqlen=tokens.shape[1],
        device_map="cpu",
        enable_torch_compile=False,
        **options,
    )
    loaded["model"], layers = compressor.quantize()
    used = {name: {key: layer.get(key) for key in ("bits", "group_size", "sym")} for name, layer in layers.items()}
    return {**options, "layers": used}


def arguments(job: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of AutoRound: the plan's, or one scheme for all modules, and the job's settings."""
    if job.get("plan"):
        chosen = json.loads(Path(job["plan"]).read_text(encoding="utf-8"))
    else:
        wanted = job["format"]
        grid = {"bits": wanted["bits"], "group_size": wanted["group_size"], "sym": wanted["symmetric"]}
        chosen = {"scheme": {**grid, "data_type": "int", "act_bits": 16}}
    if job["method"] == "rtn":
        chosen["iters"] = 0
    known = ("iters", "lr", "batch_size", "gradient_accumulate_steps", "disable_opt_rtn", "seed")
    return {**chosen, **{key: value for key, value in job.get("settings", {}).items() if key in known}}


def weights(loaded: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Values by name: AutoRound leaves rounded values in plain linear modules."""
    model = loaded["model"]
    found = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        found.setdefault("lm_head.weight", found["model.embed_tokens.weight"])
    return found
