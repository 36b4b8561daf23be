"""Weights in 8-bit floats with a scale for each block are read as what they stand for, and never written so."""

from __future__ import annotations

import json
from pathlib import Path

import architectures
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tokenizer

import mixprec as mp
from mixprec.core.errors import UserError
from mixprec.models.discover.building import class_of
from mixprec.models.model import Model

IDS = torch.arange(3, 27)[None]
BLOCK = (16, 12)


def in_fp8(folder: Path, architecture: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """A model whose linears are in blocks of 8-bit floats, and what its tensors stand for (float64 loops)."""
    model = architectures.model_of(architecture).to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    meant = load_file(folder / "model.safetensors")
    stored = dict(meant)
    addresses = [linear.weight_name for linear in Model(folder).decoder.linears]
    for name in (name for name in meant if name in addresses):
        weight = meant[name].double()
        rows, columns = (-(-size // each) for size, each in zip(weight.shape, BLOCK, strict=True))
        scales, codes = torch.zeros(rows, columns), torch.zeros(weight.shape, dtype=torch.float8_e4m3fn)
        exact = torch.zeros_like(weight)
        for i in range(rows):
            for j in range(columns):
                here = slice(i * BLOCK[0], (i + 1) * BLOCK[0]), slice(j * BLOCK[1], (j + 1) * BLOCK[1])
                scales[i, j] = weight[here].abs().max() / 448
                codes[here] = (weight[here] / scales[i, j]).to(torch.float8_e4m3fn)
                exact[here] = codes[here].double() * scales[i, j].double()
        stored[name], stored[f"{name}_scale_inv"] = codes, scales
        meant[name] = exact.to(torch.bfloat16)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(BLOCK),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder, meant


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe", "deepseek_v3"])
def test_they_are_read_as_what_they_stand_for(architecture: str, tmp_path: Path) -> None:
    folder, meant = in_fp8(tmp_path / "fp8", architecture)
    model = Model(folder)
    plain = tmp_path / "plain"
    config = architectures.config_of(architecture, dtype="bfloat16")
    kind = class_of(config)
    assert kind is not None
    config.save_pretrained(plain)
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
    theirs = kind.from_pretrained(plain, dtype=torch.float32).eval()
    with torch.no_grad():
        assert model.load().model(input_ids=IDS).logits.equal(theirs(input_ids=IDS).logits)
    assert any("8-bit floats are read as bfloat16" in note for note in model.load().notes)
    # What is compressed is what they stand for, and so is all that is kept: nothing is left in 8-bit floats.
    plan = {"default": "keep", "rules": [{"match": "last_mlp", "format": "w4g8"}], "method": "rtn"}
    mp.compress(model, mp.plan(model, plan), tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == meant.keys()
    changed = {linear.weight_name for linear in model.decoder.linears if linear.layer == 2 and "mlp" in linear.address}
    for name, tensor in meant.items():
        assert written[name].dtype == tensor.dtype and written[name].equal(tensor) == (name not in changed)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_scales_of_other_blocks_are_refused(tmp_path: Path) -> None:
    folder, _ = in_fp8(tmp_path / "fp8", "llama")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["weight_block_size"] = [128, 128]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"weight_scale_inv has the shape \(2, 4\); blocks of 128 x 128 want \(1, 1\)"):
        Model(folder).load()


def test_it_is_said_once_wherever_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("mixprec.models.model.console.print", lambda *lines, **_: said.extend(map(str, lines)))
    model = Model(in_fp8(tmp_path / "fp8", "qwen3_moe")[0])
    mp.compress(model, mp.plan(model, "w4g16", method="rtn"), tmp_path / "out")
    model.load()
    assert len([line for line in said if "8-bit floats are read as bfloat16" in line]) == 1
