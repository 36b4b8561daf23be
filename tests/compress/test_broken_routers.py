"""A router that overflows is found by what it leaves behind, and named with what to do."""

from __future__ import annotations

from pathlib import Path

import architectures
import pytest
import torch
from tiny import TEXT, tokenizer

import mixprec as mp
from mixprec.core.errors import UserError
from mixprec.models.model import Model


@pytest.mark.parametrize("architecture", ["qwen3_moe", "deepseek_v3"])
def test_a_router_that_overflows_in_float16(architecture: str, tmp_path: Path) -> None:
    broken = architectures.model_of(architecture)
    for name, parameter in broken.named_parameters():
        if name.endswith(("mlp.gate.weight", "post_attention_layernorm.weight")):
            parameter.data.fill_(6e4)
    broken.to(torch.float16).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(4 * TEXT, encoding="utf-8")
    model = Model(tmp_path / "model", dtype="float16")
    calibration = mp.calibrate(model, text=str(tmp_path / "text.txt"), samples=3, tokens=24)
    with pytest.raises(UserError, match=r"its inputs are NaN or infinite .*compute in float32"):
        mp.compress(model, mp.plan(model, "w3g16", method="gptq"), tmp_path / "out", calibration=calibration)
