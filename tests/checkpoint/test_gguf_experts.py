"""GGUF files of mixtures of experts: llama.cpp and mixprec compute what the compressed model computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
import tiny
import torch
from architectures import config_of, model_of
from llamacpp import needs_llamacpp, opened, perplexity
from tiny import TEXT

from mixprec.checkpoint import compare
from mixprec.checkpoint.base import CheckpointFormat
from mixprec.checkpoint.dense import DENSE
from mixprec.checkpoint.formats import checkpoint_format
from mixprec.checkpoint.gguf.writer import FILE
from mixprec.checkpoint.opening import open_checkpoint, open_stored
from mixprec.compress.stream import compress
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.models.config import load_config
from mixprec.models.encoding import Encoder
from mixprec.models.gguf import metadata
from mixprec.models.load import LoadedModel
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.plan.rules import PlanSpec, build_plan

GGUF = checkpoint_format("gguf")
#: Rows that types with blocks of 32 fit.
WIDE = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "head_dim": 16}
LATENT = {"kv_lora_rank": 32, "q_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 16}
YARN = {
    "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0,
    "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 32,
}  # fmt: skip
#: With its ends rounded, as llama.cpp rounds them.
GPT_OSS_YARN = {
    "rope_type": "yarn", "rope_theta": 150_000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
    "original_max_position_embeddings": 4096, "truncate": True,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "qwen2_moe": {"shared_expert_intermediate_size": 64},
    "qwen3_moe": {"norm_topk_prob": True},
    "deepseek_v2": {**LATENT},
    "deepseek_v2 lite": {**LATENT, "q_lora_rank": None, "num_hidden_layers": 27},
    "deepseek_v3": {
        **LATENT,
        "n_routed_experts": 8,
        "num_experts": 8,
        "num_local_experts": 8,
        "n_group": 4,
        "topk_group": 2,
    },
    "deepseek_v3 yarn": {**LATENT, "rope_parameters": YARN, "norm_topk_prob": True},
    "glm4_moe": {"attention_bias": True, "routed_scaling_factor": 2.5, "norm_topk_prob": True},
    "glm4_moe norms": {"use_qk_norm": True, "norm_topk_prob": False},
    "gpt_oss": {"intermediate_size": 64, "rope_parameters": GPT_OSS_YARN},
    "gpt_oss plain": {"rope_parameters": {"rope_type": "default", "rope_theta": 150_000.0}},
}  # fmt: skip
#: Every layer's experts have one type for up, gate and down each; the attention of the last layer stays.
TYPES: Mapping[str, Any] = {
    "default": "q4_0",
    "method": "ggml",
    "rules": [{"match": "*_down", "format": "q8_0"}, {"match": "last_attn", "format": "keep"}],
}


def write(folder: Path, name: str, **options: Any) -> Path:
    """A tiny mixture in a folder, whose routers prefer some experts."""
    model = model_of(name.split()[0], **{**WIDE, **MODELS[name], **options})
    words = tiny.tokenizer()
    loaded = LoadedModel(model, Encoder(words, model.config.vocab_size))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("sinks"):
                parameter.copy_(torch.linspace(0, 2, len(parameter)))
    tiny.learn(loaded, 30 if model.config.num_hidden_layers < 10 else 0)
    with torch.no_grad():
        for key, buffer in model.named_buffers():
            if key.endswith("e_score_correction_bias"):
                buffer.copy_(torch.linspace(0.3, -0.3, len(buffer)))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return {name: write(tmp_path_factory.mktemp("source") / "model", name) for name in MODELS}


def made(source: Path, spec: Mapping[str, Any], out: Path, form: CheckpointFormat = GGUF) -> Path:
    inventory = decoder_of(load_config(str(source)))
    plan = build_plan(PlanSpec.model_validate(spec), inventory, str(source), "rtn")
    compress(Model(source), plan, out, format=form)
    return out


def logits(loaded: LoadedModel, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = loaded.model(input_ids=torch.tensor([tokens])).logits[0]
    return found


@needs_llamacpp
@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_the_uncompressed_model(sources: Mapping[str, Path], tmp_path: Path, name: str) -> None:
    source = Model(sources[name]).load()
    tokens = source.tokenizer(TEXT)["input_ids"][:60]
    reference = logits(source, tokens)
    with opened(made(sources[name], {"default": "keep"}, tmp_path / "out") / FILE) as other:
        found = other.logits(tokens)
    # A token whose experts are nearly as good as others may go to these: llama.cpp keeps keys and values in 16 bits.
    assert ((found - reference).abs().amax(-1) < 0.05).float().mean() > 0.9


@pytest.mark.parametrize("name", [name for name in MODELS if "lite" not in name])
def test_all_readers_compute_the_compressed_model(sources: Mapping[str, Path], tmp_path: Path, name: str) -> None:
    source = sources[name]
    packed = made(source, TYPES, tmp_path / "gguf")
    dense = made(source, TYPES, tmp_path / "dense", DENSE)
    expected, loaded = Model(dense).load(), Model(packed).load()
    tokens = loaded.tokenizer(TEXT)["input_ids"][:60]
    reference, found = logits(expected, tokens), logits(loaded, tokens)
    # Packed keys of latent attention become float16 where they are transposed.
    latent = name.startswith("deepseek")
    # gpt-oss keeps its experts transposed, and products of strided matrices round otherwise.
    tolerance = 0.1 if latent else 1e-5 if name.startswith("gpt_oss") else 0.0
    assert torch.allclose(found, reference, rtol=0, atol=tolerance)
    config = load_config(str(source))
    inventory = decoder_of(config)
    plan = build_plan(PlanSpec.model_validate(TYPES), inventory, str(source), "rtn")
    assert (packed / FILE).stat().st_size == GGUF.bytes(plan, inventory, config)
    for other in (packed, packed / FILE):  # with its configuration, and by its own metadata
        stored, opened_ = open_stored(other), open_checkpoint(other)
        assert stored.layouts == opened_.layouts
        assert stored.inventory == opened_.inventory == inventory
        worst = max(item.error for item in compare.diff(open_checkpoint(dense), opened_).values())
        assert worst < (1e-3 if latent else 1e-6)
    _check_llama_cpp(packed / FILE, tokens, reference)


def _check_llama_cpp(path: Path, tokens: list[int], reference: torch.Tensor) -> None:
    from mixprec.compress.ggml import library_path

    if library_path() is None:
        return
    with opened(path) as other:
        found = other.logits(tokens)
    # Its activations are rounded to 8 bits before they meet packed weights.
    assert perplexity(found, tokens) == pytest.approx(perplexity(reference, tokens), rel=0.05)
    assert (found.argmax(-1) == reference.argmax(-1)).float().mean() > 0.9


def test_the_layout_is_that_of_llama_cpp(sources: Mapping[str, Path], tmp_path: Path) -> None:
    out = made(sources["deepseek_v3"], TYPES, tmp_path / "out")
    reader = gguf.GGUFReader(out / FILE)
    held = {each.name: (each.tensor_type.name, [int(size) for size in each.shape]) for each in reader.tensors}
    assert held["blk.1.ffn_up_exps.weight"] == ("Q4_0", [64, 32, 8])
    assert held["blk.1.ffn_down_exps.weight"] == ("Q8_0", [32, 64, 8])
    assert held["blk.1.ffn_up_shexp.weight"] == ("Q4_0", [64, 32])
    assert held["blk.1.ffn_gate_inp.weight"] == ("F32", [64, 8])
    assert held["blk.1.exp_probs_b.bias"] == ("F32", [8])
    assert held["blk.0.ffn_up.weight"] == ("Q4_0", [64, 96])
    assert held["blk.0.attn_k_b.weight"] == ("F16", [32, 32, 4])
    assert held["blk.0.attn_v_b.weight"] == ("Q4_0", [32, 16, 4])
    assert held["blk.1.attn_k_b.weight"] == ("F32", [32, 32, 4])  # kept, as the source has it
    said = {key: field.contents() for key, field in reader.fields.items()}
    assert (said["deepseek2.expert_count"], said["deepseek2.expert_used_count"]) == (8, 2)
    assert said["deepseek2.leading_dense_block_count"] == 1
    assert said["deepseek2.expert_gating_func"] == gguf.ExpertGatingFuncType.SIGMOID
    assert (said["deepseek2.attention.key_length"], said["deepseek2.attention.key_length_mla"]) == (48, 48)
    assert (said["deepseek2.attention.value_length"], said["deepseek2.attention.value_length_mla"]) == (32, 16)


def test_experts_of_two_types_are_refused_with_the_nearest_plan(sources: Mapping[str, Path], tmp_path: Path) -> None:
    spec = {"default": "q4_0", "method": "ggml", "rules": [{"match": "2_up.e1", "format": "q8_0"}]}
    message = (
        r"experts\.0\.up_proj and 2 more: layer 2's experts are one tensor of one type for up in GGUF, and have "
        r"q4_0 and q8_0; the nearest plan has q8_0 for 2_up"
    )
    with pytest.raises(UserError, match=message):
        made(sources["qwen3_moe"], spec, tmp_path / "out")
    # Formats whose grids one type holds may differ.
    made(
        sources["qwen3_moe"], {"default": "w4g32", "rules": [{"match": "2_up.e1", "format": "w3g32"}]}, tmp_path / "out"
    )


def test_gpt_oss_lies_as_llama_cpp_has_it(sources: Mapping[str, Path], tmp_path: Path) -> None:
    """With biases of experts and router, sinks, and the experts in the type that the original's are in."""
    spec = {**TYPES, "default": "keep", "rules": [{"match": "experts", "format": "mxfp4"}]}
    out = made(sources["gpt_oss"], spec, tmp_path / "out")
    reader = gguf.GGUFReader(out / FILE)
    held = {each.name: (each.tensor_type.name, [int(size) for size in each.shape]) for each in reader.tensors}
    assert held["blk.1.ffn_gate_exps.weight"] == ("MXFP4", [64, 64, 4])
    assert held["blk.1.ffn_gate_exps.bias"] == ("F32", [64, 4])
    assert held["blk.1.ffn_down_exps.bias"] == ("F32", [64, 4])
    assert held["blk.1.ffn_gate_inp.bias"] == ("F32", [4])
    assert held["blk.1.attn_sinks.weight"] == ("F32", [4])
    assert held["blk.1.attn_output.bias"] == ("F32", [64])
    assert "blk.1.post_attention_norm.weight" in held
    said = {key: field.contents() for key, field in reader.fields.items()}
    assert (said["gpt-oss.expert_count"], said["gpt-oss.expert_used_count"]) == (4, 2)
    assert (said["gpt-oss.expert_feed_forward_length"], said["gpt-oss.attention.sliding_window"]) == (64, 16)
    assert (said["gpt-oss.rope.scaling.type"], said["gpt-oss.rope.scaling.factor"]) == ("yarn", 32.0)
    loaded = Model(out).load()
    tokens = loaded.tokenizer(TEXT)["input_ids"][:60]
    _check_llama_cpp(out / FILE, tokens, logits(loaded, tokens))
    for path in (out, out / FILE):
        stored = open_stored(path)
        assert {str(layout.format) for layout in stored.layouts.values()} == {"keep", "mxfp4"}


def test_where_llama_cpp_rounds_and_gpt_oss_does_not_is_said(
    sources: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(sources["gpt_oss"], {"default": "keep"}, tmp_path / "rounded")
    assert "YaRN" not in capsys.readouterr().err
    write(tmp_path / "model", "gpt_oss", rope_parameters={**GPT_OSS_YARN, "truncate": False})
    made(tmp_path / "model", {"default": "keep"}, tmp_path / "out")
    assert "rope_parameters.truncate: false: llama.cpp rounds where YaRN" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gpt_oss", {"swiglu_limit": 5.0}, "swiglu_limit: llama.cpp computes gpt-oss with 7.0, this model has 5.0"),
        ("gpt_oss", {"attention_bias": False}, "attention_bias: llama.cpp computes gpt-oss with True"),
        ("gpt_oss", {"layer_types": ["full_attention"] * 2}, "every second layer of gpt-oss"),
        ("gpt_oss", {"rope_parameters": {**GPT_OSS_YARN, "beta_slow": 2.0}}, "beta_fast 32 and beta_slow 1"),
        ("gpt_oss", {"rope_parameters": {**GPT_OSS_YARN, "attention_factor": 2.0}}, "without mscale and attention"),
        ("glm4_moe", {"n_group": 2, "topk_group": 1}, "n_group: 2: files of GLM-4.5 are written without"),
        ("qwen2_moe", {"decoder_sparse_step": 2}, "experts in every layer"),
        ("qwen2_moe", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("deepseek_v2", {"topk_method": "group_limited_greedy"}, "topk_method: group_limited_greedy"),
        ("deepseek_v2 lite", {"num_hidden_layers": 2}, "q_lora_rank"),
        ("deepseek_v3", {"rope_interleave": False}, "rope_interleave"),
        ("deepseek_v3", {"rope_parameters": {**YARN, "mscale": 0.5}}, "mscale and mscale_all_dim"),
        ("mixtral", {"sliding_window": 16}, "sliding windows"),
    ],
)
def test_mixtures_that_llama_cpp_would_compute_otherwise(name: str, options: dict[str, Any], message: str) -> None:
    config = config_of(name.split()[0], **{**WIDE, **MODELS[name], **options})
    assert message in str(metadata.problem(config))


def test_a_file_of_another_number_of_experts(sources: Mapping[str, Path], tmp_path: Path) -> None:
    out = made(sources["qwen3_moe"], TYPES, tmp_path / "out")
    config = artifacts.read_json(out / "config.json")
    artifacts.write_json(out / "config.json", config | {"num_local_experts": 3, "num_experts": 3})
    with pytest.raises(UserError, match=r"ffn_gate_exps\.weight has the shape \(4, 32, 64\), of 3 experts by the conf"):
        open_checkpoint(out)
    with pytest.raises(UserError, match="a mixture of experts in GGUF is inspected and compared, not run"):
        Model(out / FILE).load()
