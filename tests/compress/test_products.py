"""Products in bfloat16: blocks and sums round what they multiply, solves and all else don't."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrated import calibrating, inputs_of
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from mixprec.api import make
from mixprec.compress import guided
from mixprec.compress.live import compress_live
from mixprec.compress.options import GuidedSpec, SolveOptions
from mixprec.compress.stream import compress
from mixprec.core.errors import UserError
from mixprec.models.model import Model
from mixprec.numerics.products import exact, multiplying
from mixprec.numerics.statistics import InputSums
from mixprec.plan.schema import Plan
from mixprec.recipe import Recipe
from mixprec.results.plan import Plan as PlanOf
from mixprec.walk.hooks import watching_modules

Make = Callable[..., Path]
Planner = Callable[..., Plan]
ROUNDED = SolveOptions(products="bfloat16")


def test_sums_are_those_of_rounded_inputs() -> None:
    inputs, weights = torch.randn(2, 50, 24), torch.rand(2, 50)
    sums = InputSums(24, products="bfloat16", drift=True)
    full = inputs + 0.1 * torch.randn_like(inputs)
    sums.add(inputs, weights, full)
    found, rows = sums.result(), inputs.flatten(0, 1).double()
    counts = weights.flatten().double()
    expected = (rows * counts[:, None]).T @ rows / counts.sum()
    drift = ((full - inputs).flatten(0, 1).double() * counts[:, None]).T @ rows / counts.sum()
    assert found.hessian.dtype == torch.float32
    assert torch.equal(found.hessian, found.hessian.T)
    # Each factor is rounded to 8 bits: half of 2^-8 each, in any direction.
    scale = expected.diagonal().sqrt()
    assert ((found.hessian - expected).abs() / (scale[:, None] * scale)).max() < 2**-8
    assert found.drift is not None
    assert (found.drift - drift).abs().max() < 0.01 * drift.abs().max() + 1e-3


def test_what_looks_at_inputs_on_the_way_does_not_round() -> None:
    linear, inputs = nn.Linear(8, 8), torch.randn(4, 8)
    found: list[Tensor] = []

    def look(_number: int, arguments: tuple[Tensor, ...]) -> None:
        found.append(arguments[0] @ arguments[0].T)

    with torch.no_grad(), watching_modules([[linear]], look), multiplying("bfloat16", inputs.device):
        behind = linear(inputs)
        with exact(inputs.device):
            assert torch.equal(linear(inputs), nn.functional.linear(inputs, linear.weight, linear.bias))
    assert behind.dtype == torch.bfloat16
    assert torch.equal(found[0], inputs @ inputs.T)
    with torch.no_grad(), multiplying("model", inputs.device):
        assert linear(inputs).dtype == torch.float32


@pytest.mark.parametrize("method", ["gptq", "gptaq", "awq"])
def test_results_are_nearly_those_of_the_models_own_type(
    method: str, checkpoint: Make, planner: Planner, tmp_path: Path
) -> None:
    source, seen = checkpoint(dtype=torch.float16), calibrating()
    plan = planner(source, "w4g16", method)
    damages = {}
    for name, options in {"model": SolveOptions(), "bfloat16": ROUNDED}.items():
        compress(Model(source), plan, tmp_path / name, calibration=seen, options=options)
        made = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32).requires_grad_(False)
        original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        damages[name] = 0.0
        for address in plan.modules:
            inputs = inputs_of(original, address, seen)
            moved = (made.get_submodule(address).weight - original.get_submodule(address).weight).detach().double()
            damages[name] += float((inputs.flatten(0, -2).double() @ moved.T).square().sum())
    assert damages["bfloat16"] != damages["model"]  # it was rounded
    assert damages["bfloat16"] == pytest.approx(damages["model"], rel=0.3)


def test_a_model_in_memory_is_compressed_to_the_same_weights(
    checkpoint: Make, planner: Planner, tmp_path: Path
) -> None:
    source, seen = checkpoint(dtype=torch.float32), calibrating()
    plan = planner(source, "w4g16", "gptq")
    compress(Model(source), plan, tmp_path / "out", calibration=seen, options=ROUNDED)
    live: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    compress_live(live, plan, calibration=seen, options=ROUNDED)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for address in plan.modules:
        assert torch.equal(live.get_submodule(address).weight.detach(), stored[f"{address}.weight"])


def test_guidance_of_other_products_is_made_anew(checkpoint: Make, tmp_path: Path) -> None:
    model, seen = Model(checkpoint(dtype=torch.float32)), calibrating(samples=2)
    spec, told = GuidedSpec(), []

    def gather(products: Any) -> None:
        told.clear()
        guided.gather(model.open_blocks(), model.identity, seen, spec, tmp_path, told.append, products=products)

    gather("model")
    before = load_file(tmp_path / "00000.safetensors")
    gather("model")
    assert told == [2]  # both were there
    gather("bfloat16")
    assert told == [0, 2]
    after = load_file(tmp_path / "00000.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.allclose(before[name], after[name], rtol=0.3, atol=1e-7) for name in before)


def test_models_in_float16_are_refused(checkpoint: Make, planner: Planner, tmp_path: Path) -> None:
    """Autocast has no rule for what joins two tensors in float16, and stops there with an error of its own."""
    source = checkpoint(dtype=torch.float16)
    model, content = Model(source, dtype="float16"), planner(source, "w4g16", "gptq")
    with pytest.raises(UserError, match=r"options\.products: bfloat16 doesn't go with dtype: float16"):
        make.compress(model, PlanOf(model, content), tmp_path / "out", options=ROUNDED)
    live: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float16)
    with pytest.raises(UserError, match="doesn't go with dtype: float16"):
        make.quantize_(live, "w4g16", options=ROUNDED)
    said = {
        "model": {"id": "m", "dtype": "float16"},
        "plan": {"default": "w4g16"},
        "compress": {"products": "bfloat16"},
    }
    with pytest.raises(ValueError, match=r"compress\.products: bfloat16 doesn't go with dtype: float16"):
        Recipe.model_validate(said | {"compress": {"products": "bfloat16"}})


def test_stamps_of_what_has_none_stay_as_they_were() -> None:
    assert "products" not in SolveOptions().model_dump()
    assert ROUNDED.model_dump()["products"] == "bfloat16"
