"""Experts that a plan drops are not in the checkpoint, and transformers' own model without them computes what the
original does when its router can't choose them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
from safetensors.torch import load_file
from tiny import TEXT, tokenizer
from transformers import AutoModelForCausalLM

import mixprec as mp
from mixprec.checkpoint import fewer
from mixprec.checkpoint.formats import checkpoint_format
from mixprec.checkpoint.integrity import card_of, weight_bytes
from mixprec.compress import stream
from mixprec.core.errors import UserError
from mixprec.models.model import Model
from mixprec.plan.dropping import kept, per_expert
from mixprec.plan.schema import Plan

TOKENS = torch.arange(48).reshape(2, 24) * 7 % 380
GROUPED = {"n_routed_experts": 8, "num_local_experts": 8, "n_group": 2, "topk_group": 1}
#: Every tested mixture -> keys of its configuration besides.
MIXTURES: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "glm4_moe", "deepseek_v2", "qwen3_next")},
    **{name: {} for name in ("qwen3_5_moe_text", "lfm2_moe", "granitemoehybrid", "olmoe", "phimoe", "granitemoe")},
    "minimax": {},
    "deepseek_v3": GROUPED,
}


def saved(folder: Path, architecture: str, **changes: Any) -> Any:
    """transformers' own model, written to a folder; its routers have biases that differ, where there are any."""
    model = architectures.model_of(architecture, **changes)
    for name, buffer in (*model.named_buffers(), *model.named_parameters()):
        if name.endswith("e_score_correction_bias"):
            buffer.data.copy_(0.1 * torch.randn(buffer.shape, generator=torch.Generator().manual_seed(3)))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model


def dropping(model: Model, count: int = 1, default: str = "keep") -> mp.Plan:
    """A plan that drops so many experts of each layer, others in each, and of each group where there are groups."""
    decoder = model.decoder
    rules = []
    for layer, numbers in decoder.experts.items():
        size = len(numbers) // decoder.expert_groups
        gone = [start + (layer + place) % size for start in numbers[::size] for place in range(count)]
        rules += [{"match": f"{layer}_*.e{number}", "format": "drop"} for number in gone]
    return mp.plan(model, {"default": default, "rules": rules}, method="rtn")


@contextmanager
def masked(model: Any, plan: Plan, decoder: Any) -> Iterator[None]:
    """Inside, the original's routers can't choose the experts that the plan drops: their logits are minus infinity."""
    left, before = kept(plan.dropped, decoder), torch.nn.functional.linear
    names = dict(model.named_parameters()) | dict(model.named_buffers())
    lost: dict[int, list[int]] = {}
    for name, layer in per_expert(decoder).items():
        gone = [number for number in decoder.experts[layer] if number not in left[layer]]
        if name.endswith("weight"):
            lost[id(names[name])] = gone
        elif "correction" in name:
            names[name].data[gone] = -10.0  # scores are sigmoids, so between 0 and 1

    def linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        made = before(inputs, weight, bias)
        if id(weight) in lost:
            made[..., lost[id(weight)]] = -torch.inf
        return made

    torch.nn.functional.linear = linear
    try:
        yield
    finally:
        torch.nn.functional.linear = before


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


@pytest.mark.parametrize(
    "architecture", architectures.slow_but(MIXTURES, "mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3")
)
def test_the_checkpoint_is_the_original_that_can_not_choose_them(architecture: str, tmp_path: Path) -> None:
    original = saved(tmp_path / "model", architecture, **MIXTURES[architecture])
    model = Model(tmp_path / "model")
    made = dropping(model)
    mp.compress(model, made, tmp_path / "out")
    plan = made.content
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    unmasked = logits(original)
    with masked(original, plan, model.decoder):
        expected = logits(original)
    assert float((expected - unmasked).abs().max()) > 1e-4  # they were chosen before
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-6)
    _, inventory, _ = fewer.left(plan, model.decoder, model.config)
    assert sum(parameter.numel() for parameter in loaded.parameters()) <= inventory.parameters
    count = len(next(iter(inventory.experts.values())))
    assert count == len(next(iter(model.decoder.experts.values()))) - model.decoder.expert_groups
    assert card_of(tmp_path / "out")["experts"] == {
        str(layer): list(each) for layer, each in kept(plan.dropped, model.decoder).items()
    }
    assert not list(tmp_path.glob(".out*"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts on disk, with a tokenizer and a text."""
    folder = tmp_path_factory.mktemp("dropping")
    saved(folder / "model", "mixtral", intermediate_size=64)
    (folder / "text.txt").write_text(4 * TEXT, encoding="utf-8")
    return folder


@pytest.mark.parametrize("form", ["dense", "compressed-tensors", "gguf"])
def test_sizes_are_those_of_the_files(folder: Path, tmp_path: Path, form: str) -> None:
    model = Model(folder / "model")
    plan = dropping(model, default="w4g32" if form != "dense" else "keep")
    found = mp.compress(model, plan, tmp_path / "out", format=form)
    written = plan.account
    predicted = checkpoint_format(form).bytes(plan.content, model.decoder, model.config)
    size = weight_bytes(tmp_path / "out") or 0
    assert abs(predicted - size) <= 16 * len(plan.modules)  # Mixtral's names in files are longer than the model's
    whole = mp.plan(model, "w4g32" if form != "dense" else "keep")
    experts = [each for each in model.decoder.linears if each.address in plan.content.dropped]
    routers = 2 * model.decoder.sizes.hidden  # a row of each layer's router
    gone = sum(whole.account.modules[each.address].bytes for each in experts) + 2 * routers
    assert whole.account.packed_bytes - written.packed_bytes == gone
    assert written.effective_bits < whole.account.effective_bits
    assert sum(row["format"] == "drop" for row in found.rows()) == len(experts) == 6


def test_the_rest_is_compressed_as_that_of_the_smaller_model(folder: Path, tmp_path: Path) -> None:
    """In one step as in two: experts left out first, then GPTQ of what is left, in the same bytes."""
    model = Model(folder / "model")
    calibrated = mp.calibrate(model, text=str(folder / "text.txt"), samples=3, tokens=24)
    plan = dropping(model, default="w3g16")
    both = mp.Plan(model, plan.content.model_copy(update={"method": "gptq"}))
    mp.compress(model, both, tmp_path / "both", calibration=calibrated)
    mp.compress(model, dropping(model), tmp_path / "less")
    less = Model(tmp_path / "less")
    again = mp.calibrate(less, text=str(folder / "text.txt"), samples=3, tokens=24)
    mp.compress(less, mp.plan(less, "w3g16", method="gptq"), tmp_path / "steps", calibration=again)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("both", "steps"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_killed_run_goes_on_and_other_numbers_are_made_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(folder / "model")
    plan = dropping(model, default="w3g16")
    writes = []
    write = fewer.write
    monkeypatch.setattr(fewer, "write", lambda *given: (writes.append(1), write(*given)))

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream.compress(model, plan.content, tmp_path / "out", on_module=stopped)
    assert (tmp_path / ".out.experts").is_dir() and len(writes) == 1
    mp.compress(model, plan, tmp_path / "out")
    mp.compress(model, plan, tmp_path / "at_once")
    assert len(writes) == 2  # the killed run's, and that of the other
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "at_once"))
    assert all(torch.equal(one[name], other[name]) for name in one | other)
    assert not (tmp_path / ".out.experts").exists()


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (["1_up.e0"], "1_up.e0 dropped and 1_gate.e0, 1_down.e0 not; an expert goes as a whole, 1_\\*.e0"),
        (["1_q"], "1_q: drop leaves out routed experts"),
        (["1_*.e0"], "layer 1 drops 1 experts, layer 2 0; .*drop as many of each"),
        (["*_*.e0", "*_*.e1", "*_*.e2"], "1 of 4 experts of each layer would stay, and a token needs 2"),
    ],
)
def test_what_can_not_go_is_named(folder: Path, rules: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        mp.plan(Model(folder / "model"), {"default": "keep", "rules": [{"match": rules, "format": "drop"}]})


def test_groups_of_experts_stay_equal(tmp_path: Path) -> None:
    saved(tmp_path / "model", "deepseek_v3", **GROUPED)
    model = Model(tmp_path / "model")
    with pytest.raises(UserError, match=r"among 2 groups of experts, which must stay equal; .* group of 4 neighbours"):
        mp.plan(model, {"default": "keep", "rules": [{"match": ["2_*.e0", "2_*.e1"], "format": "drop"}]})


def test_a_dense_model_and_a_loaded_one(folder: Path, tmp_path: Path) -> None:
    saved(tmp_path / "llama", "llama")
    rules = [{"match": "1_up", "format": "drop"}]
    with pytest.raises(UserError, match="1_up: drop leaves out routed experts"):
        mp.plan(Model(tmp_path / "llama"), {"default": "keep", "rules": rules})
    model = Model(folder / "model")
    with pytest.raises(UserError, match="a loaded model keeps its shapes"):
        mp.quantize_(architectures.model_of("mixtral"), dropping(model))


def test_shards_and_experts_one_by_one(tmp_path: Path) -> None:
    """As transformers 4 stored them: each expert a tensor of its own, in several files."""
    original = saved(tmp_path / "whole", "qwen3_moe")
    original.save_pretrained(tmp_path / "model", max_shard_size="60KB")
    tokenizer().save_pretrained(tmp_path / "model")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    model = Model(tmp_path / "model")
    plan = dropping(model, count=2)
    mp.compress(model, plan, tmp_path / "out")
    predicted = checkpoint_format("dense").bytes(plan.content, model.decoder, model.config)
    assert predicted == weight_bytes(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert loaded.config.num_experts == 2
    with masked(original, plan.content, model.decoder):
        torch.testing.assert_close(logits(loaded), logits(original), rtol=0, atol=1e-6)


def test_the_card_says_what_was_dropped(folder: Path, tmp_path: Path) -> None:
    (folder / "model" / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    model = Model(folder / "model")
    plan = dropping(model)
    mp.compress(model, plan, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| experts in each layer | 3 of 4 |" in card
    assert "| drop | 6 modules" in card
    assert "license: apache-2.0" in card
    listed = card_of(tmp_path / "out")["plan"]["modules"]
    assert list(listed) == [each.address for each in Model(tmp_path / "out").decoder.linears]
