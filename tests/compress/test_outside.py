"""Embedding and head in a plan: solved as any linear, tied or not, on disk and in a loaded model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rounding import round_in_memory
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mixprec.calibration.data import Calibration
from mixprec.checkpoint.dense import DENSE
from mixprec.compress.gptq import gptq
from mixprec.compress.live import compress_live
from mixprec.compress.stream import compress
from mixprec.core import artifacts
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.numerics.formats import Format
from mixprec.numerics.groupwise import dequantize
from mixprec.numerics.hessian import factorize
from mixprec.plan.schema import Plan

Make = Callable[..., Path]
Planner = Callable[..., Plan]

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
ALL_FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text"]
TOKENS = torch.arange(2, 34).reshape(2, 16)
CALIBRATION = Calibration(TOKENS, None, {"sources": []}, "digest")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(TOKENS).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ALL_FAMILIES)
def test_every_family_reloads_with_the_logits_of_the_rounded_model(
    checkpoint: Make, planner: Planner, tmp_path: Path, architecture: str, tied: bool
) -> None:
    source = checkpoint(architecture, tie_word_embeddings=tied)
    rules = {"embedding": "w4g16"} if tied else {"embedding": "w4g16", "head": "w3g8_asym"}
    plan = planner(source, "keep", **rules)
    assert list(plan.changed) == ([EMBEDDING] if tied else [EMBEDDING, HEAD])
    reports = compress(Model(source), plan, tmp_path / "out")
    original = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    before = logits(original)
    round_in_memory(original, plan)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert torch.equal(logits(reloaded), logits(original))
    assert not torch.equal(before, logits(original))
    assert list(reports) == list(plan.modules)
    assert reports[EMBEDDING].relative_error > 0
    config = load_config(str(source))
    files = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == DENSE.bytes(plan, decoder_of(config), config)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", ["gptq", "gptaq", "awq", "rtn"])
def test_a_loaded_model_gets_what_the_checkpoint_holds(
    checkpoint: Make, planner: Planner, tmp_path: Path, method: str, tied: bool
) -> None:
    source = checkpoint(dtype=torch.float32, tie_word_embeddings=tied)
    plan = planner(source, "w4g16", method, embedding="w4g8", **({} if tied else {"head": "w3g8"}))
    compress(Model(source), plan, tmp_path / "out", calibration=CALIBRATION)
    loaded = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    reports = compress_live(loaded, plan, calibration=CALIBRATION)
    stored = weights(tmp_path / "out")
    for address in plan.changed:
        assert torch.equal(loaded.get_submodule(address).weight, stored[f"{address}.weight"]), address
        assert reports[address].method == method
    tie = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert tie == tied


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_solved_for_the_final_states_of_the_compressed_model(
    checkpoint: Make, planner: Planner, tmp_path: Path, tied: bool
) -> None:
    source = checkpoint(dtype=torch.float32, tie_word_embeddings=tied)
    plan = planner(source, "w4g16", head={"format": "w3g8", "method": "gptq"})
    address = EMBEDDING if tied else HEAD
    compress(Model(source), plan, tmp_path / "out", calibration=CALIBRATION)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    before = AutoModelForCausalLM.from_pretrained(source, dtype="auto").get_submodule(address).weight
    model.get_submodule(address).weight.data.copy_(before)  # blocks compressed, the head not yet
    with torch.no_grad():
        states = model.base_model(TOKENS).last_hidden_state.reshape(-1, before.shape[1])
    format = Format(3, 8)
    factor = factorize(states.T @ states / len(states), damping=0.03, act_order=True, group_size=8)
    expected = dequantize(gptq(before.detach(), factor, format), format, torch.float32)
    found = weights(tmp_path / "out")[f"{address}.weight"]
    agree = (found == expected).float().mean()
    assert agree > 0.99  # the states are those of the walk to rounding, so hardly a code differs


def test_an_embedding_by_gptq_is_the_searched_grid(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source = checkpoint(dtype=torch.float32, tie_word_embeddings=False)
    plan = planner(source, "keep", embedding={"format": "w3g8", "method": "gptq"})
    compress(Model(source), plan, tmp_path / "out", calibration=CALIBRATION)
    before, after = weights(source)[f"{EMBEDDING}.weight"], weights(tmp_path / "out")[f"{EMBEDDING}.weight"]
    rounded = planner(source, "keep", embedding="w3g8")
    compress(Model(source), rounded, tmp_path / "rtn")
    plain = weights(tmp_path / "rtn")[f"{EMBEDDING}.weight"]
    assert (after - before).square().sum() < (plain - before).square().sum()


def test_blocks_are_calibrated_behind_the_compressed_embedding(
    checkpoint: Make, planner: Planner, tmp_path: Path
) -> None:
    source = checkpoint(dtype=torch.float32, tie_word_embeddings=False)
    plan = planner(source, "w3g16", "gptq", embedding={"format": "w2g16", "method": "rtn"})
    compress(Model(source), plan, tmp_path / "both", calibration=CALIBRATION)
    first = planner(source, "keep", embedding="w2g16")
    compress(Model(source), first, tmp_path / "first")
    then = planner(source, "w3g16", "gptq")
    compress(Model(tmp_path / "first"), then, tmp_path / "then", calibration=CALIBRATION)
    both, apart = weights(tmp_path / "both"), weights(tmp_path / "then")
    assert all(torch.equal(tensor, apart[name]) for name, tensor in both.items())


@pytest.mark.parametrize("tied", [True, False])
def test_a_killed_run_ends_with_the_same_bytes(
    checkpoint: Make, planner: Planner, tmp_path: Path, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint(tie_word_embeddings=tied)
    embedding = {"format": "w3g16", "method": "gptq" if tied else "rtn"}
    plan = planner(source, "w3g16", "gptq", embedding=embedding, **({} if tied else {"head": "w4g16"}))
    whole = tmp_path / "whole"
    compress(Model(source), plan, whole, calibration=CALIBRATION)
    real = artifacts.save_tensors
    for allowed in range(len(plan.changed)):
        left = [allowed]

        def save(path: Path, *rest: object, left: list[int] = left) -> None:
            if path.parent.name.endswith(".blocks"):
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
            real(path, *rest)  # type: ignore[arg-type]

        out = tmp_path / f"killed-{allowed}"
        monkeypatch.setattr(artifacts, "save_tensors", save)
        try:
            compress(Model(source), plan, out, calibration=CALIBRATION)
        except KeyboardInterrupt:
            monkeypatch.setattr(artifacts, "save_tensors", real)
            compress(Model(source), plan, out, calibration=CALIBRATION)
        monkeypatch.setattr(artifacts, "save_tensors", real)
        for path in whole.glob("*.safetensors"):
            assert path.read_bytes() == (out / path.name).read_bytes()


def test_the_copy_of_a_tied_embedding_does_not_stay(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source = checkpoint(tie_word_embeddings=True)
    file = source / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors[f"{EMBEDDING}.weight"].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    plan = planner(source, "keep", embedding="w3g16")
    compress(Model(source), plan, tmp_path / "out")
    assert "lm_head.weight" not in weights(tmp_path / "out")
    config = load_config(str(source))
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert size == DENSE.bytes(plan, decoder_of(config), config)
