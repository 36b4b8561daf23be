"""Scales fold in mixtures, hybrids and blocks whose attention and MLP read one norm: the function stays what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
from safetensors.torch import load_file
from tiny import TEXT, tokenizer
from torch import Tensor

import mixprec as mp
from mixprec.compress import awq
from mixprec.compress.folding import fold, freedom, joined, tie
from mixprec.core.errors import UserError
from mixprec.models.arch import FAMILIES, KNOWN
from mixprec.models.decoder import Group, Norm, Nowhere
from mixprec.models.experts import unstack
from mixprec.models.model import Model
from mixprec.models.weights import blocks_of, map_in

IDS = torch.arange(3, 51).view(2, 24)
#: Tested text models of which it is known where scales fold.
FOLDED = [name for name in architectures.TEXT if name in KNOWN or name in FAMILIES]
COMPRESSED = [
    "mixtral", "qwen2_moe", "glm4_moe", "deepseek_v3", "gpt_oss", "lfm2_moe", "granitemoehybrid", "qwen3_5_text",
    "bamba", "cohere2",
]  # fmt: skip


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def random_scale(group: Group, seed: int) -> Tensor:
    """Any scale that may be folded, constant on ties."""
    allowed, channels = freedom(group, ()), tie(group)
    noise = torch.randn(group[0].in_features, generator=torch.Generator().manual_seed(seed))
    noise = noise if channels is None else noise[channels]
    if allowed == "fixed":
        return torch.ones_like(noise)
    return noise.exp() if allowed == "free" else torch.exp2((2 * noise.abs()).round())


@pytest.mark.parametrize("architecture", FOLDED)
def test_the_function_stays_what_it_was(architecture: str) -> None:
    model = architectures.model_of(architecture, seed=4)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if "norm" in name:
            parameter += 0.3 * torch.randn_like(parameter)
        else:
            parameter *= 4  # else little happens in blocks
    unstack(model)
    before, known, scaled = logits(model), map_in(model), 0
    for block in known.blocks:
        inside = blocks_of(model)[block.layer - 1]
        assert all(group.source is not None for group in block.groups)
        for number, (group, _) in enumerate(joined(block.groups)):
            folded = fold(inside, group, random_scale(group, number))
            scaled += bool(folded.changed)
            assert all(name in dict(inside.named_parameters()) for name in folded.changed)
    after = logits(model)
    assert scaled >= len(known.blocks)
    assert float((after - before).abs().max()) <= 1e-5 * float(before.abs().max())


@pytest.mark.parametrize("architecture", FOLDED)
def test_all_that_reads_a_norm_has_one_scale(architecture: str) -> None:
    """Otherwise what isn't multiplied would see other inputs: a channel of the norm that is doubled moves nothing but
    the inputs of its readers."""
    model = architectures.model_of(architecture, seed=4)
    unstack(model)
    for block in map_in(model).blocks:
        groups = [each for each, _ in joined(block.groups) if isinstance(each.source, Norm)]
        assert len({each.source.path for each in groups}) == len(groups)  # type: ignore[union-attr]
        listed = [linear.address for each, _ in joined(block.groups) for linear in each]
        assert sorted(listed) == sorted(linear.address for linear in block.linears)


@pytest.mark.parametrize("architecture", architectures.slow_but(COMPRESSED, "mixtral", "cohere2"))
def test_awq_compresses_and_scales_are_no_worse_than_none(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a checkpoint holds is what transformers computes, experts' and routers' columns included; every scale that
    is folded lowers the error of the outputs that it was chosen by."""
    original = architectures.model_of(architecture, seed=4)
    for name, parameter in original.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    original.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(4 * TEXT, encoding="utf-8")
    model = Model(tmp_path / "model")
    calibrated = mp.calibrate(model, text=str(tmp_path / "text.txt"), samples=3, tokens=24)
    chosen: list[awq.Scale] = []
    search = awq.search_scale

    def watched(*given: Any, **named: Any) -> awq.Scale:
        chosen.append(search(*given, **named))
        return chosen[-1]

    monkeypatch.setattr(awq, "search_scale", watched)
    plan = mp.plan(model, "w3g16", method="awq")
    found = mp.compress(model, plan, tmp_path / "out", calibration=calibrated)
    assert all(each.loss <= each.loss_before for each in chosen)
    assert sum(each.loss for each in chosen) < 0.999 * sum(each.loss_before for each in chosen)
    assert any(row["scale"] not in (None, 1.0) for row in found.rows())
    loaded = type(original).from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    mp.quantize_(original, plan, calibrated)
    torch.testing.assert_close(logits(loaded), logits(original), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["mixtral", "deepseek_v3", "lfm2"])
def test_with_everything_kept_but_one_layer_the_rest_is_the_function_that_it_was(
    architecture: str, tmp_path: Path
) -> None:
    """Routers and kept experts get powers of two, which change no bit of what they compute."""
    original = architectures.model_of(architecture, seed=4).bfloat16()
    original.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(4 * TEXT, encoding="utf-8")
    model = Model(tmp_path / "model")
    calibrated = mp.calibrate(model, text=str(tmp_path / "text.txt"), samples=3, tokens=24)
    rules = [{"match": "*_down", "format": "w4g16"}]
    plan = mp.plan(model, {"default": "keep", "rules": rules}, method="awq")
    mp.compress(model, plan, tmp_path / "out", calibration=calibrated)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "out"))
    for name, tensor in one.items():
        if (
            not torch.equal(tensor, other[name])
            and "down" not in name
            and not name.endswith(("w2.weight", "w1.weight"))
        ):
            rows = (tensor.float() / other[name].float()).nan_to_num(1)
            assert bool((rows.log2().frac() == 0).all()), name


def test_what_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    original = architectures.model_of("phimoe")
    original.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(4 * TEXT, encoding="utf-8")
    model = Model(tmp_path / "model")
    calibrated = mp.calibrate(model, text=str(tmp_path / "text.txt"), samples=3, tokens=24)
    with pytest.raises(UserError, match=r"q_proj.* nothing is known that a scale on its inputs folds into"):
        mp.compress(model, mp.plan(model, "w3g16", method="awq"), tmp_path / "out", calibration=calibrated)


def test_where_it_is_known_that_nothing_folds_inputs_stay() -> None:
    model = architectures.model_of("gpt_oss")
    unstack(model)
    down = next(group for group in map_in(model).blocks[0].groups if group[0].kind == "down")
    assert isinstance(down.source, Nowhere)
    assert freedom(down, ()) == "fixed"
    assert tie(down) is None
