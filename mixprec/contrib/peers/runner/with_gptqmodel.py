"""GPTQModel as an engine: GPTQ, GPTAQ, AWQ, rounding."""

from __future__ import annotations

import copy
import json
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

# It asks for two workers at least, however many threads each of them has.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
# What it compiles on first use stays with the environment.
os.environ.setdefault("GPTQMODEL_TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "extensions"))

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
from gptqmodel.utils.cpp import load_pack_block_extension
from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module
from run import calibration

METHODS: dict[str, dict[str, Any]] = {
    "gptq": {"method": "gptq"},
    "gptaq": {"method": "gptq", "gptaq": {"alpha": 0.25, "device": "auto"}},
    "awq": {"method": "awq"},
    "rtn": {"weight_only": {"method": "rtn"}},
}
#: Our names of settings -> QuantizeConfig's.
FIELDS = {
    "damp": "damp_percent",
    "damp_increment": "damp_auto_increment",
    "act_order": "desc_act",
    "act_group_aware": "act_group_aware",
    "static_groups": "static_groups",
    "mse": "mse",
    "true_sequential": "true_sequential",
}
RECORDED = ("bits", "group_size", "sym", "lm_head", "method", "format", "gptaq", *FIELDS.values())


def load(job: dict[str, Any]) -> Any:
    # Plain torch, which float32 does no harm to: refused for the sake of its packed kernels.
    AwqTorchLinear.SUPPORTS_DTYPES = [*AwqTorchLinear.SUPPORTS_DTYPES, torch.float32]
    load_pack_block_extension()  # else it would be compiled while the clock runs
    config = QuantizeConfig(**arguments(job))
    dtype = getattr(torch, job.get("dtype", "float32"))
    return GPTQModel.load(job["model"], config, dtype=dtype)


def arguments(job: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of QuantizeConfig."""
    if job.get("plan"):
        chosen = json.loads(Path(job["plan"]).read_text(encoding="utf-8"))
    else:
        wanted = job["format"]
        chosen = {"bits": wanted["bits"], "group_size": wanted["group_size"], "sym": wanted["symmetric"]}
        chosen |= {"lm_head": False, **METHODS[job["method"]]}
    settings = job.get("settings", {})
    chosen |= {FIELDS[key]: value for key, value in settings.items() if key in FIELDS}
    if "alpha" in settings and "gptaq" in chosen:
        chosen["gptaq"] = {**chosen["gptaq"], "alpha": settings["alpha"]}
    # Offloading writes every finished layer to disk; what is compared is the arithmetic.
    return {**chosen, "device": "cpu", "offload_to_disk": False}


def quantize(loaded: Any, job: dict[str, Any]) -> dict[str, Any]:
    tokens = calibration(job)
    rows = None
    if tokens is not None and job["method"] != "rtn":
        rows = [{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in tokens]
    loaded.quantize(rows, batch_size=1, backend=BACKEND.AUTO)
    config = loaded.quantize_config
    known = {field.name for field in fields(config)}
    used = {name: getattr(config, name) for name in RECORDED if name in known}
    return {**used, "dynamic": config.dynamic and {key: dict(value) for key, value in config.dynamic.items()}}


def save(loaded: Any, folder: str) -> None:
    """Its own checkpoint."""
    loaded.save(folder)


def weights(loaded: Any) -> dict[str, torch.Tensor]:
    """Values by name: its packed modules, dequantized by its own kernels' arithmetic."""
    model = loaded.model
    found = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    for name, module in model.named_modules():
        if hasattr(module, "qweight"):
            found[f"{name}.weight"] = dense(module)
    if model.config.tie_word_embeddings:
        found.setdefault("lm_head.weight", found["model.embed_tokens.weight"])
    return found


def dense(module: Any) -> torch.Tensor:
    """The weight (out, in) of a packed module; both of its layouts unpack to (in, out)."""
    with torch.no_grad():
        if isinstance(module, AwqTorchLinear):
            group = module.in_features if module.group_size == -1 else module.group_size
            return dequantize_gemm(module.qweight, module.qzeros, module.scales.float(), module.bits, group).T
        if module.qzero_format() == 1:
            # As they go to disk, zero points are one too low; its kernels want them right.
            module = copy.deepcopy(module)  # it is saved as it was
            convert_gptq_v1_to_v2_format_module(module, module.bits, module.pack_dtype)
        return module.dequantize_weight().T
