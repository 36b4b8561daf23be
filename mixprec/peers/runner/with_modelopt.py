"""ModelOpt as an engine: rounding to the largest magnitude of a group, or its AWQ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from run import calibration, load_model

ALGORITHMS = {"rtn": "max", "awq": "awq_lite"}


def load(job: dict[str, Any]) -> Any:
    return load_model(job)


def quantize(model: Any, job: dict[str, Any]) -> dict[str, Any]:
    config = configuration(job)
    tokens = calibration(job)

    def forward(loaded: Any) -> None:
        for row in () if tokens is None else tokens:
            loaded(input_ids=row[None])

    with torch.no_grad():
        mtq.quantize(model, config, forward if job["method"] != "rtn" else None)
    return config


def configuration(job: dict[str, Any]) -> dict[str, Any]:
    """The plan's configuration, or one format for all modules of the blocks."""
    if job.get("plan"):
        config = json.loads(Path(job["plan"]).read_text(encoding="utf-8"))
    else:
        wanted = job["format"]
        if not wanted["symmetric"]:
            raise SystemExit("ModelOpt's integer grids are symmetric")
        whole = wanted["group_size"] == -1
        where = {"axis": 0} if whole else {"block_sizes": {-1: wanted["group_size"]}}
        entry = {"quantizer_name": "model.layers.*_proj.weight_quantizer", "cfg": {"num_bits": wanted["bits"], **where}}
        config = {"quant_cfg": [{"quantizer_name": "*", "enable": False}, entry], "algorithm": "max"}
    config["algorithm"] = ALGORITHMS[job["method"]]
    for entry in config["quant_cfg"]:
        blocks = entry.get("cfg", {}).get("block_sizes")
        if blocks:  # JSON has no numbers as keys
            entry["cfg"]["block_sizes"] = {int(axis): size for axis, size in blocks.items()}
    return config


def weights(model: Any) -> dict[str, torch.Tensor]:
    """Values by name: the fake quantizers applied once, AWQ's scales of inputs folded back into the weights."""
    found = {name: tensor for name, tensor in model.state_dict().items() if "_quantizer" not in name}
    with torch.no_grad():
        for name, module in model.named_modules():
            quantizer = getattr(module, "weight_quantizer", None)
            if quantizer is not None and quantizer.is_enabled:
                weight = quantizer(module.weight)
                scale = getattr(module.input_quantizer, "pre_quant_scale", None)
                found[f"{name}.weight"] = weight if scale is None else weight * scale
    if model.config.tie_word_embeddings:
        found.setdefault("lm_head.weight", found["model.embed_tokens.weight"])
    return found
