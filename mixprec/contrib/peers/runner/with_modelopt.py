"""ModelOpt as an engine: rounding to the largest magnitude of a group, its AWQ or its GPTQ."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from run import calibration, load_model

ALGORITHMS = {"rtn": "max", "awq": "awq_lite", "gptq": "gptq"}


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


def allocate(model: Any, job: dict[str, Any]) -> dict[str, Any]:
    """auto_quantize's formats for each budget, by its gradient scores; modules that runtimes fuse are not tied.

    It counts the bits of codes, and a head that is not quantized with 16.
    """
    tokens = calibration(job)
    search = mtq.algorithms.AutoQuantizeGradientSearcher
    search.quant_grouping_rules = []
    formats = [
        {
            "quant_cfg": [
                {"quantizer_name": "*", "enable": False},
                {
                    "quantizer_name": "*weight_quantizer",
                    "cfg": {"num_bits": one["bits"], "block_sizes": {-1: one["group_size"]}},
                },
            ],
            "algorithm": "max",
        }
        for one in job["candidates"]
    ]
    sizes = {name: m.weight.numel() for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    inside = sum(size for name, size in sizes.items() if name.startswith("model.layers."))
    whole = sum(sizes.values())
    seconds, plans, state = [], {}, None
    for bits in job["budgets"]:
        limit = {"effective_bits": (float(bits) * inside + 16 * (whole - inside)) / whole}
        started = time.perf_counter()
        if state is None:
            _, state = mtq.auto_quantize(
                model,
                constraints=limit,
                module_search_spaces=[
                    {
                        "module_name_patterns": ["model.layers.*"],
                        "quantization_formats": formats,
                        "allow_no_quant": False,
                    }
                ],
                quantization_formats=formats,
                data_loader=[row[None] for row in tokens],
                forward_step=lambda m, batch: m(input_ids=batch, labels=batch),
                loss_func=lambda output, batch: output.loss,
                disabled_layers=["*lm_head*"],
                num_calib_steps=1,  # the largest weights of groups need no data
                num_score_steps=len(tokens),
            )
        config = mtq.algorithms.get_auto_quantize_config(state, limit)
        plans[str(bits)] = {
            entry["quantizer_name"].removesuffix(".weight_quantizer"): entry["cfg"]["num_bits"]
            for entry in config["quant_cfg"]
            if entry["quantizer_name"].endswith("_proj.weight_quantizer") and entry.get("enable", True)
        }
        seconds.append(time.perf_counter() - started)
    return {"plans": plans, "seconds_each": seconds}


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
