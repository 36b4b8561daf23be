"""``quantize_``: the weights that ``compress`` writes, in a loaded model; nothing changes where something is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

import mixprec as mp
from mixprec.core.errors import UserError


def loaded(model: mp.Model, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(model.id, dtype=dtype)


@pytest.mark.parametrize("method", ["rtn", "gptq", "gptaq", "awq"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_weights_as_a_checkpoint(
    model: mp.Model, calibration: mp.Calibration, method: str, dtype: str, tmp_path: Path
) -> None:
    computed = mp.Model(model.id, dtype=dtype)
    live = loaded(model, getattr(torch, dtype))
    if dtype == "bfloat16":  # a checkpoint keeps its own type, so it needs one of bfloat16
        live.save_pretrained(tmp_path / "bf16")
        mp.Model(model.id).encoder.tokenizer.save_pretrained(tmp_path / "bf16")
        computed = mp.Model(str(tmp_path / "bf16"), dtype=dtype)
    plan = mp.plan(computed, "w3g16", keep=["1_attn"], method=method)
    mp.compress(computed, plan, tmp_path / "out", calibration=calibration)
    before = {name: parameter.clone() for name, parameter in live.named_parameters()}
    steps: list[mp.Step] = []
    live.train()
    made = mp.quantize_(live, plan, calibration, progress=steps.append)
    assert live.training and steps[-1].done == steps[-1].total == 14
    written = load_file(tmp_path / "out" / "model.safetensors")
    changed = {name for name, parameter in live.named_parameters() if not torch.equal(parameter, before[name])}
    for name, tensor in written.items():
        assert torch.equal(dict(live.named_parameters())[name], tensor), name
    assert {f"{address}.weight" for address in plan.content.changed} <= changed
    assert len(made.rows()) == 14 and "10 of 14 modules" in str(made)


def test_a_format_alone(model: mp.Model) -> None:
    live = loaded(model)
    made = mp.quantize_(live, "w8g16")
    assert {row["format"] for row in made.rows()} == {"w8g16"}
    other = loaded(model)
    mp.quantize_(other, mp.plan(model, "w8g16"))
    assert all(torch.equal(a, b) for a, b in zip(live.parameters(), other.parameters(), strict=True))


def test_what_is_refused_changes_nothing(model: mp.Model, other: mp.Model, tmp_path: Path) -> None:
    live = loaded(model)
    before = {name: parameter.clone() for name, parameter in live.named_parameters()}
    with pytest.raises(UserError, match=r"method gptq .* needs calibration data"):
        mp.quantize_(live, "w3g16", method="gptq")
    with pytest.raises(UserError, match=r"quantize_: default: format 'w33'"):
        mp.quantize_(live, "w33")
    with pytest.raises(UserError, match="is no PreTrainedModel"):
        mp.quantize_(nn.Linear(2, 2), "w3g16")  # type: ignore[arg-type]
    live.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"quantize_: model\.layers\.1\.mlp\.up_proj\.weight"):
        mp.quantize_(live, "w3g16")
    live.model.layers[1].mlp.up_proj.weight.data.copy_(before["model.layers.1.mlp.up_proj.weight"])
    assert all(torch.equal(parameter, before[name]) for name, parameter in live.named_parameters())


def test_a_model_without_weights(model: mp.Model) -> None:
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model.config)
    with pytest.raises(UserError, match="lies on the meta device and has no weights"):
        mp.quantize_(empty, "w3g16")


def test_a_model_that_is_quantized_already(model: mp.Model) -> None:
    live = loaded(model)
    live.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(UserError, match="is quantized already"):
        mp.quantize_(live, "w3g16")


def test_linears_that_something_wraps(model: mp.Model) -> None:
    live = loaded(model)
    live.model.layers[0].self_attn.q_proj = nn.Sequential(live.model.layers[0].self_attn.q_proj)
    with pytest.raises(UserError, match=r"model\.layers\.0\.self_attn\.q_proj"):
        mp.quantize_(live, "w3g16")


def test_linears_with_one_weight_in_common(model: mp.Model) -> None:
    live = loaded(model)
    attention = live.model.layers[0].self_attn
    attention.k_proj.weight = attention.v_proj.weight
    with pytest.raises(UserError, match=r"self_attn\.v_proj has its weight in common with .*self_attn\.k_proj"):
        mp.quantize_(live, "w3g16")


def test_the_plan_of_a_model_with_more_blocks(model: mp.Model, tmp_path: Path) -> None:
    import tiny

    deeper = mp.Model(str(tiny.write_checkpoint(tmp_path / "deeper", num_hidden_layers=3)))
    with pytest.raises(UserError, match="modules the model doesn't have"):
        mp.quantize_(loaded(model), mp.plan(deeper, "w3g16"))
