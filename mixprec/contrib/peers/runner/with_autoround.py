"""AutoRound as an engine: signed gradient descent on the rounding, or plain rounding with ``iters`` 0."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from auto_round import AutoRound, AutoScheme
from auto_round.auto_scheme.gen_auto_scheme import GenScheme
from auto_round.schemes import QuantizationScheme
from run import calibration, load_model
from transformers import AutoTokenizer


def load(job: dict[str, Any]) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(job["model"], local_files_only=True, trust_remote_code=False)
    model = load_model(job)
    # What is not rounded stays as it was: with ``amp`` the whole model becomes bfloat16.
    return {"model": model, "tokenizer": tokenizer, "original": model.state_dict()}


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
    loaded["rounded"] = {f"{name}.weight" for name, layer in layers.items() if layer.get("bits", 16) < 16}
    used = {name: {key: layer.get(key) for key in ("bits", "group_size", "sym")} for name, layer in layers.items()}
    return {**options, "layers": used}


class _Chosen(Exception):
    """The formats are chosen; rounding is not wanted."""


def allocate(loaded: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    """AutoScheme's formats for each budget, by its own scores; nothing is rounded for good.

    Bits of scales are left out of its count: they are the same for all candidates here, and it counts zero points for
    symmetric formats too.
    """
    tokens = calibration(job)
    plans: dict[str, dict[str, int]] = {}
    seconds: list[float] = []
    choose = GenScheme._get_layer_config

    def timed(self: GenScheme, method: Any) -> dict[str, dict[str, Any]]:
        started = time.perf_counter()
        layers = choose(self, method)
        seconds.append(time.perf_counter() - started)
        plans[str(self.auto_scheme.avg_bits)] = {name: layer["bits"] for name, layer in layers.items()}
        if len(plans) == len(job["budgets"]):
            raise _Chosen
        return layers

    GenScheme._get_layer_config = timed
    options = [
        QuantizationScheme(bits=one["bits"], group_size=one["group_size"], sym=one["symmetric"], data_type="int")
        for one in job["candidates"]
    ]
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "calibration.jsonl"
        # AutoRound encodes the text again, with its own BOS.
        alone, added = (loaded["tokenizer"]("a", add_special_tokens=special)["input_ids"] for special in (False, True))
        front = next(n for n in range(len(added)) if added[n : n + len(alone)] == alone)
        rows = loaded["tokenizer"].batch_decode(tokens[:, front:])
        text.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
        scheme = AutoScheme(
            avg_bits=[float(bits) for bits in job["budgets"]],
            options=options,
            ignore_scale_zp_bits=True,
            nsamples=len(rows),
            # A decoded row may come back some tokens shorter.
            seqlen=tokens.shape[1] - 8,
            dataset=str(text),
            device_map="cpu",
            enable_torch_compile=False,
        )
        compressor = AutoRound(
            loaded["model"],
            loaded["tokenizer"],
            scheme=scheme,
            iters=0,
            dataset=str(text),
            nsamples=len(rows),
            seqlen=tokens.shape[1] - 8,
            device_map="cpu",
            enable_torch_compile=False,
        )
        with contextlib.suppress(_Chosen):
            compressor.quantize()
    return {"plans": plans, "seconds_each": seconds, "options": [str(one) for one in options]}


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
    known = ("iters", "lr", "batch_size", "gradient_accumulate_steps", "disable_opt_rtn", "seed", "amp")
    own = {key: value for key, value in job.get("settings", {}).items() if key in known}
    return {"amp": False, **chosen, **own}  # AutoRound's own: bfloat16 where the processor has units for it


def weights(loaded: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Values by name: AutoRound leaves rounded values in plain linear modules."""
    model = loaded["model"]
    rounded = {name: value for name, value in model.state_dict().items() if name in loaded["rounded"]}
    found = loaded["original"] | rounded
    if model.config.tie_word_embeddings:
        found.setdefault("lm_head.weight", found["model.embed_tokens.weight"])
    return found
