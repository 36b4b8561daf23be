"""llm-compressor as an engine: GPTQ, AWQ, rounding, SparseGPT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.pipelines.cache import IntermediatesCache
from run import calibration, load_model

#: Our names of settings -> the modifiers' fields.
FIELDS = {
    "GPTQModifier": {"damp": "dampening_frac", "act_order": "actorder", "block_size": "block_size"},
    "AWQModifier": {"n_grid": "n_grid", "duo_scaling": "duo_scaling"},
    "SparseGPTModifier": {"damp": "dampening_frac", "block_size": "block_size"},
    "QuantizationModifier": {},
}
MODIFIERS = {
    "rtn": ("QuantizationModifier",),
    "gptq": ("GPTQModifier",),
    "awq": ("AWQModifier", "QuantizationModifier"),
    "sparsegpt": ("SparseGPTModifier",),
}
TARGETS = [r"re:^model\.layers\..*_proj$"]


def load(job: dict[str, Any]) -> Any:
    # Pinned memory needs a GPU's driver, and AWQ asks for it without looking whether there is one.
    IntermediatesCache.pin_memory = lambda self, *arguments, **options: None
    return load_model(job)


def quantize(model: Any, job: dict[str, Any]) -> dict[str, Any]:
    recipe = recipe_of(job)
    data: dict[str, Any] = {}
    tokens = calibration(job)
    if tokens is not None and job["method"] != "rtn":
        rows = {"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()}
        data = {
            "dataset": Dataset.from_dict(rows),
            "max_seq_length": tokens.shape[1],
            "num_calibration_samples": len(tokens),
            "shuffle_calibration_samples": False,
        }
    oneshot(model=model, recipe=yaml.safe_dump(recipe, sort_keys=False), **data)
    return {"recipe": recipe, "defaults": defaults(job["method"])}


def recipe_of(job: dict[str, Any]) -> dict[str, Any]:
    """The recipe: from the plan, or one format for all modules; the job's settings put into it."""
    if job.get("plan"):
        recipe = yaml.safe_load(Path(job["plan"]).read_text(encoding="utf-8"))
        modifiers = next(iter(next(iter(recipe.values())).values()))
        if tuple(modifiers) != MODIFIERS[job["method"]]:
            raise SystemExit(f"the plan is for {', '.join(modifiers)}; export it with --method {job['method']}")
    else:
        modifiers = {name: {} for name in MODIFIERS[job["method"]]}
        last = modifiers[MODIFIERS[job["method"]][-1]]
        if job["method"] == "sparsegpt":
            last |= sparsity(job["sparsity"])
        else:
            last |= {
                "ignore": ["lm_head"],
                "config_groups": {"all": {"targets": TARGETS, "weights": grid(job["format"])}},
            }
        recipe = {"peers_stage": {"peers_modifiers": modifiers}}
    for name, fields in modifiers.items():
        known = FIELDS[name]
        fields |= {known[key]: value for key, value in job.get("settings", {}).items() if key in known}
    return recipe


def grid(format: dict[str, Any]) -> dict[str, Any]:
    whole = format["group_size"] == -1
    where = {"strategy": "channel"} if whole else {"strategy": "group", "group_size": format["group_size"]}
    return {"num_bits": format["bits"], "type": "int", "symmetric": format["symmetric"], **where}


def sparsity(wanted: dict[str, Any]) -> dict[str, Any]:
    mask = {"mask_structure": wanted["pattern"]} if wanted.get("pattern") else {}
    return {"sparsity": wanted["ratio"], **mask, "targets": TARGETS, "ignore": ["lm_head"]}


def defaults(method: str) -> dict[str, Any]:
    """What the modifiers have where nobody says otherwise."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.pruning import SparseGPTModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    classes = {"rtn": QuantizationModifier, "gptq": GPTQModifier, "awq": AWQModifier, "sparsegpt": SparseGPTModifier}
    fields = classes[method].model_fields
    wanted = ("block_size", "dampening_frac", "actorder", "n_grid", "duo_scaling")
    return {name: fields[name].default for name in wanted if name in fields}


def save(model: Any, folder: str) -> None:
    """Its own checkpoint, packed."""
    model.save_pretrained(folder, save_compressed=True)


def weights(model: Any) -> dict[str, torch.Tensor]:
    """Values by name; where only scales were found (rounding, AWQ), weights are rounded to their grid here."""
    found = dict(model.state_dict())
    for name, module in model.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None or scheme.weights is None:
            continue
        zero = getattr(module, "weight_zero_point", None)
        with torch.no_grad():
            found[f"{name}.weight"] = fake_quantize(module.weight, module.weight_scale, zero, scheme.weights)
    if model.config.tie_word_embeddings:
        found.setdefault("lm_head.weight", found["model.embed_tokens.weight"])
    return found
