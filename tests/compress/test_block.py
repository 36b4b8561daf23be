"""The engine against whole models: after every group of linears all of the model runs again, without the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated import calibrating, inputs_of
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mixprec.calibration.data import Calibration
from mixprec.compress.gptaq import gptaq
from mixprec.compress.gptq import gptq
from mixprec.compress.options import SolveOptions
from mixprec.compress.stream import compress
from mixprec.core.errors import UserError
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.numerics.formats import Format
from mixprec.numerics.groupwise import dequantize
from mixprec.numerics.hessian import factorize
from mixprec.plan.schema import Plan
from mixprec.walk.samples import Samples
from mixprec.walk.states import States

Make = Callable[..., Path]
Planner = Callable[..., Plan]

OPTIONS = SolveOptions(act_order=True, grid_search=False)


@torch.no_grad()
def one_after_the_other(source: Path, plan: Plan, calibration: Calibration, method: str) -> Any:
    """Compress group by group; before each the whole model runs, compressed as it is by then."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    full = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    for group in decoder_of(load_config(str(source))).groups:
        x = inputs_of(model, group[0].address, calibration)
        hessian = (x.T @ x / len(x)).float()
        drift = ((inputs_of(full, group[0].address, calibration) - x).T @ x / len(x)).float()
        factors = {
            size: factorize(hessian, damping=OPTIONS.damping, act_order=True, group_size=size) for size in (8, 16)
        }
        for module in group:
            format, weight = plan.formats[module.address], model.get_submodule(module.address).weight
            if isinstance(format, Format):
                half, factor = weight.bfloat16(), factors[format.group_size]
                if method == "gptq":
                    found = gptq(half, factor, format, search=None)
                else:
                    found = gptaq(half, factor, format, drift, search=None)
                weight.copy_(dequantize(found, format, torch.bfloat16))
    return model


@pytest.mark.parametrize("method", ["gptq", "gptaq"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2"])
def test_every_group_is_solved_for_the_inputs_of_the_compressed_model(
    checkpoint: Make, planner: Planner, tmp_path: Path, architecture: str, method: str
) -> None:
    source = checkpoint(architecture)
    plan = planner(source, "w3g16", method, last_up="keep", **{"1_q": "w4g8"})
    calibration = calibrating()
    reports = compress(Model(source), plan, tmp_path / "out", calibration=calibration, options=OPTIONS)
    expected = one_after_the_other(source, plan, calibration, method)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    different = total = 0
    for address in plan.changed:
        one, other = expected.get_submodule(address).weight, found.get_submodule(address).weight
        # Sums in another order can turn a rounding, and what follows from it; nearly all weights are equal to the bit.
        different += int((one != other).sum())
        total += one.numel()
        assert reports[address].output_error is not None
    assert different / total < 0.02
    kept = "model.layers.1.mlp.up_proj"
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    assert torch.equal(found.get_submodule(kept).weight, original.get_submodule(kept).weight)
    assert reports[kept].output_error is None


def test_tokens_without_weight_do_not_count(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source = checkpoint()
    plan = planner(source, "w3g16", "gptq")
    few, many = calibrating(4), calibrating(6)
    weights = torch.ones(many.tokens.shape)
    weights[4:] = 0
    assert torch.equal(few.tokens, many.tokens[:4])
    compress(Model(source), plan, tmp_path / "few", calibration=few)
    compress(Model(source), plan, tmp_path / "weighted", calibration=replace(many, weights=weights))
    compress(Model(source), plan, tmp_path / "many", calibration=many)
    few_w, weighted, many_w = (load_file(tmp_path / n / "model.safetensors") for n in ("few", "weighted", "many"))
    same = sum(int((few_w[name] == weighted[name]).sum()) for name in few_w)
    other = sum(int((few_w[name] == many_w[name]).sum()) for name in few_w)
    total = sum(tensor.numel() for tensor in few_w.values())
    assert same / total > 0.995
    assert other < same


def test_methods_and_formats_mix_module_by_module(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source = checkpoint()
    plan = planner(
        source,
        "w3g16",
        "gptq",
        **{
            "1_q": {"format": "w4g8_asym", "method": "rtn"},
            "1_k": {"format": "any4g16", "method": "anyk"},
            "1_o": {"format": "keep", "sparsity": "2:4", "method": "sparsegpt"},
            "1_down": {"format": "w4g16", "sparsity": "0.5", "method": "sparsegpt"},
            "2_gate": {"format": "keep", "sparsity": "0.25", "method": "wanda"},
            "2_up": {"format": "keep", "sparsity": "0.5", "method": "magnitude"},
            "2_down": {"format": "w3g16", "method": "gptq"},
        },
    )
    reports = compress(Model(source), plan, tmp_path / "out", calibration=calibrating())
    weights = load_file(tmp_path / "out" / "model.safetensors")

    def weight(address: str) -> torch.Tensor:
        return weights[f"model.layers.{address}.weight"].float()

    def distinct(address: str, group: int) -> int:
        rows = weight(address).reshape(len(weight(address)), -1, group)
        return max(len(values.unique()) for row in rows for values in row)

    assert distinct("0.self_attn.q_proj", 8) <= 16
    assert distinct("0.self_attn.k_proj", 16) <= 16
    assert distinct("0.self_attn.v_proj", 16) <= 8
    assert (weight("0.self_attn.o_proj").reshape(-1, 4) == 0).sum(1).min() >= 2
    assert (weight("0.mlp.down_proj") == 0).float().mean() >= 0.5
    assert (weight("1.mlp.gate_proj") == 0).float().mean() == pytest.approx(0.25)
    assert (weight("1.mlp.up_proj") == 0).float().mean() == pytest.approx(0.5)
    assert reports["model.layers.0.self_attn.o_proj"].zeros == pytest.approx(0.5)
    assert reports["model.layers.0.self_attn.k_proj"].method == "anyk"


def test_inputs_that_are_always_zero(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source = checkpoint()
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.input_layernorm.weight"].zero_()
    tensors["model.layers.1.post_attention_layernorm.weight"][::2] = 0
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    for method, format, sparsity in (
        ("gptq", "w3g16", None),
        ("gptaq", "w3g16", None),
        ("sparsegpt", "keep", "0.5"),
        ("anyk", "any4g16", None),
        ("awq", "w3g16", None),
    ):
        plan = planner(source, format, method, sparsity)
        compress(Model(source), plan, tmp_path / method, calibration=calibrating())
        made = load_file(tmp_path / method / "model.safetensors")
        assert all(torch.isfinite(tensor).all() for tensor in made.values())


def test_inputs_that_are_not_finite(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source = checkpoint(dtype=torch.float32)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] *= 1e30
    tensors["model.layers.0.mlp.down_proj.weight"] *= 1e30
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.layers\.\d\.\S+: its inputs are NaN or infinite"):
        plan = planner(source, "keep", **{"2_*": {"format": "w3g16", "method": "gptq"}})
        compress(Model(source), plan, tmp_path / "out", calibration=calibrating())


def test_what_is_missing_or_does_not_fit(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source = checkpoint(dtype=torch.float16)
    plan = planner(source, "w3g16", "gptq")
    with pytest.raises(UserError, match="method gptq looks at the inputs of linears and needs calibration data"):
        compress(Model(source), plan, tmp_path / "out")
    with pytest.raises(UserError, match=r"bfloat16 can't hold model\.layers\.0\.self_attn\.q_proj\.weight"):
        compress(Model(source, dtype="bfloat16"), plan, tmp_path / "out", calibration=calibrating())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("method", ["gptq", "gptaq", "awq"])
def test_micro_batches_and_states_on_disk_change_no_bit(
    checkpoint: Make, planner: Planner, tmp_path: Path, method: str, weighted: bool
) -> None:
    source = checkpoint()
    generator = torch.Generator().manual_seed(3)
    calibration = calibrating(11, weights=torch.rand(11, 20, generator=generator) if weighted else None)
    plan = planner(source, "w3g16", method, **{"1_o": "keep", "2_k": {"format": "w4g16", "method": "rtn"}})
    compress(Model(source), plan, tmp_path / "whole", calibration=calibration)
    # A sample leaves 20 x 320 numbers of 4 bytes inside a block, and has 20 x 32 in front of it.
    for name, memory_gb in (("pairs, some on disk", 4 * 25_600e-9), ("one by one, all on disk", 1e-9)):
        compress(Model(source), plan, tmp_path / name, calibration=calibration, memory_gb=memory_gb)
        found = load_file(tmp_path / name / "model.safetensors")
        for key, tensor in load_file(tmp_path / "whole" / "model.safetensors").items():
            assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize("method", ["gptq", "gptaq", "awq"])
def test_memory_does_not_grow_with_the_number_of_samples(
    checkpoint: Make, planner: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    source = checkpoint()
    plan = planner(source, "w3g16", method)
    held, inside = [0], [0]
    put, through = States.__setitem__, Samples.through

    def putting(states: States, key: Any, tensor: torch.Tensor) -> None:
        put(states, key, tensor)
        held[0] = max(held[0], sum(each.nbytes for each in states._held.values()))

    def passing(samples: Samples, number: int, *rest: Any) -> torch.Tensor:
        output = through(samples, number, *rest)
        inside[0] = max(inside[0], len(output))
        return output

    monkeypatch.setattr(States, "__setitem__", putting)
    monkeypatch.setattr(Samples, "through", passing)
    # A sample leaves 20 x 320 numbers of 4 bytes inside a block, and has 20 x 32 in front of it: of 60 samples, 40 fit.
    limit, found = 4 * 25_600, []
    for count in (8, 60):
        held[0] = inside[0] = 0
        compress(Model(source), plan, tmp_path / "out", calibration=calibrating(count), memory_gb=limit / 1e9)
        found.append((held[0] <= limit, inside[0]))
    assert found == [(True, 2), (True, 2)]


@pytest.mark.parametrize("memory_gb", [4.0, 1e-9])
@pytest.mark.parametrize("method", ["gptq", "gptaq", "awq"])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    checkpoint: Make, planner: Planner, tmp_path: Path, method: str, memory_gb: float
) -> None:
    source, calibration = checkpoint(), calibrating()
    plan = planner(source, "w3g16", method)
    reports = compress(Model(source), plan, tmp_path / "whole", calibration=calibration)

    def stop(address: str, _: object) -> None:
        if address.startswith("model.layers.1.mlp"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(Model(source), plan, tmp_path / "out", calibration=calibration, on_module=stop, memory_gb=memory_gb)
    assert not (tmp_path / "out").exists()
    solved: list[str] = []
    resumed = compress(
        Model(source),
        plan,
        tmp_path / "out",
        calibration=calibration,
        on_module=lambda a, _: solved.append(a),
        memory_gb=memory_gb,
    )
    assert resumed == reports
    assert solved == list(plan.modules)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def test_blocks_of_another_job_are_not_taken(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    source, calibration = checkpoint(), calibrating()

    def stop(address: str, _: object) -> None:
        if address.startswith("model.layers.1.mlp"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(
            Model(source), planner(source, "w4g16", "gptq"), tmp_path / "out", calibration=calibration, on_module=stop
        )
    plan = planner(source, "w3g16", "gptq")
    compress(Model(source), plan, tmp_path / "out", calibration=calibration)
    compress(Model(source), plan, tmp_path / "fresh", calibration=calibration)
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
