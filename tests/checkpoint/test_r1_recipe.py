"""The recipe about DeepSeek-R1: its files' published sizes by shape, and all of it on a tiny DeepSeek-V3."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import gguf
import pytest
import tiny
import torch
from architectures import model_of
from llamacpp import needs_llamacpp, opened, perplexity
from typer.testing import CliRunner

from mixprec import cli, pipeline, recipe
from mixprec.checkpoint.formats import checkpoint_format
from mixprec.checkpoint.gguf.writer import FILE
from mixprec.models.model import Model
from mixprec.plan.rules import build_plan

GGUF = checkpoint_format("gguf")
RECIPE = Path(__file__).parents[2] / "recipes" / "paper" / "table1_r1_dynamic.yaml"
VARIANTS = ("dynamic_2.51", "dynamic_1.73", "dynamic_1.58")
#: Three dense layers, then experts in two groups beside a shared one, as in R1; so many layers that every rule of the
#: recipe finds modules and leaves some. Rows are multiples of 256, but for those that latent keys and values and the
#: queries' rank have.
SHAPE = {
    "num_hidden_layers": 25, "hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "kv_lora_rank": 64, "q_lora_rank": 96,
    "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 64, "first_k_dense_replace": 3,
    "n_routed_experts": 4, "num_experts": 4, "num_local_experts": 4, "n_group": 2, "topk_group": 1,
    "num_experts_per_tok": 2, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
}  # fmt: skip
#: Types of the experts' tensors: those that most have, and those of the layers (from 1) that the recipe names.
EXPERTS: Mapping[str, Mapping[str, Mapping[int, str]]] = {
    "dynamic_2.51": {"gate": {}, "up": {}, "down": dict.fromkeys(range(4, 7), "Q3_K"), "": {0: "Q2_K"}},
    "dynamic_1.73": {
        "gate": dict.fromkeys(range(4, 25), "IQ2_XXS"),
        "up": dict.fromkeys(range(4, 25), "IQ2_XXS"),
        "down": dict.fromkeys(range(4, 26), "IQ2_XXS"),
        "": {0: "IQ1_M"},
    },
    "dynamic_1.58": {"gate": {}, "up": {}, "down": dict.fromkeys(range(4, 10), "IQ2_XXS"), "": {0: "IQ1_S"}},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("r1") / "model"
    made = model_of("deepseek_v3", **SHAPE).to(torch.bfloat16)
    for name, buffer in made.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(torch.linspace(0.3, -0.3, len(buffer)))
    made.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "calibration").mkdir()
    words, draw = tiny.TEXT.split(), random.Random(0)  # no text that repeats itself
    text = " ".join(draw.choice(words) for _ in range(400))
    (folder / "calibration" / "wikitext2_tokenized_valid.txt").write_text(text, encoding="utf-8")
    return folder


def changes(model: Path) -> list[str]:
    """What a user overrides: another model, and as many samples as so little text has."""
    return [f"model.id={model}", "compress.calibration.samples=4", "compress.calibration.tokens=64"]


def wanted(name: str, variant: str) -> str:
    """The type that the recipe gives to a tensor of the tiny model, by its name in GGUF."""
    special = {"token_embd.weight": "Q4_K", "output.weight": "Q6_K"}
    if name in special or "norm" in name or "ffn_gate_inp" in name or "exp_probs_b" in name:
        return special.get(name, "F32")
    _, layer, part, *_ = name.split(".")
    kind = part.removeprefix("ffn_").removesuffix("_exps")
    if part.startswith("attn"):
        # Rows of 96 and 64 weights take what llama.cpp's quantizer takes; transposed keys are unpacked.
        return {"attn_q_b": "Q5_0", "attn_v_b": "Q5_0", "attn_k_b": "F16"}.get(part, "Q4_K")
    if not part.endswith("_exps"):
        return "Q6_K"
    types = EXPERTS[variant]
    return types[kind].get(int(layer) + 1, types[""][0])


def test_every_rule_holds_for_a_tiny_deepseek_v3(model: Path, data: Path) -> None:
    chosen = recipe.load(RECIPE, changes(model))
    found = pipeline.checked(chosen, data)
    found.require(str(RECIPE))
    assert tuple(found.plans) == VARIANTS
    for variant, plan in found.plans.items():
        assert plan is not None
        assert all(str(line.format) == "q5_0" for address, line in plan.modules.items() if "_b_proj" in address)
        expert = "model.layers.24.mlp.experts.3.up_proj"
        assert str(plan.modules[expert].format) == EXPERTS[variant][""][0].lower()


@pytest.mark.slow
@needs_llamacpp
def test_it_runs_from_end_to_end_and_llama_cpp_loads_what_comes_out(model: Path, data: Path, tmp_path: Path) -> None:
    options = [argument for change in changes(model) for argument in ("--set", change)]
    arguments = ["run", str(RECIPE), "--data", str(data), "--out", str(tmp_path / "run"), *options]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    found = pipeline.checked(recipe.load(RECIPE, changes(model)), data)
    _, uncompressed = logits_of(Model(model))
    for variant in VARIANTS:
        folder = tmp_path / "run" / "variants" / variant / "checkpoint"
        types = {each.name: each.tensor_type.name for each in gguf.GGUFReader(folder / FILE).tensors}
        assert types == {name: wanted(name, variant) for name in types}
        plan = found.plans[variant]
        assert plan is not None
        assert (folder / FILE).stat().st_size == GGUF.bytes(plan, Model(model).decoder, Model(model).config)
        tokens, reference = logits_of(Model(folder))
        with opened(folder / FILE) as other:
            logits = other.logits(tokens)
        # Its activations are rounded to 8 bits before they meet packed weights, in 25 layers.
        assert _distance(logits, reference) < 0.05
        assert perplexity(logits, tokens) == pytest.approx(perplexity(reference, tokens), rel=0.01)
        assert _distance(reference, uncompressed) > 0.3


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def logits_of(model: Model) -> tuple[list[int], torch.Tensor]:
    """Some tokens, and logits (T, vocabulary) after each."""
    loaded = model.load()
    tokens = loaded.tokenizer(tiny.TEXT)["input_ids"][:60]
    with torch.no_grad():
        return tokens, loaded.model(input_ids=torch.tensor([tokens])).logits[0].float()


PUBLISHED = {"dynamic_2.51": 212, "dynamic_1.73": 158, "dynamic_1.58": 131}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_the_paper_s_files_have_their_published_sizes(variant: str) -> None:
    """Unsloth's pages write GB; llama.cpp's loader says GiB of them."""
    chosen = recipe.load(RECIPE)
    r1 = chosen.model.as_model()
    plan = build_plan(chosen.variants[variant].plan, r1.decoder, chosen.model.id, "ggml")
    whole = chosen.checkpoint.whole(plan, r1.decoder)
    assert not GGUF.problems(whole, r1.decoder, r1.config)
    assert GGUF.bytes(whole, r1.decoder, r1.config) / 2**30 == pytest.approx(PUBLISHED[variant], rel=0.02)
