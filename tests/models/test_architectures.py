"""Every architecture of the list: discovered, named, loaded and walked as transformers has it, compressed and read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import SHAPE, TEXT, tokenizer
from transformers import AutoConfig

import mixprec as mp
from mixprec.calibration.data import Calibration
from mixprec.core.errors import UserError
from mixprec.models.decoder import Linear, Norm, Nowhere, Rows
from mixprec.models.discover.building import class_of
from mixprec.models.discover.maps import map_of
from mixprec.models.experts import Experts, unstack
from mixprec.models.head import Head
from mixprec.models.labels import select
from mixprec.models.model import Model
from mixprec.models.weights import blocks_of, body_of, map_in, module_of, norm_of, through, weight_of
from mixprec.walk.blocks import block_inputs
from mixprec.walk.samples import OWN, Samples
from mixprec.walk.states import States

everywhere = pytest.mark.parametrize("architecture", architectures.ALL)
IDS = torch.arange(3, 27)[None]


def saved(folder: Path, model: Any) -> Model:
    """A model on disk, with a tokenizer."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return Model(folder)


@everywhere
def test_a_model_is_what_transformers_makes_of_it(architecture: str, tmp_path: Path) -> None:
    original = architectures.model_of(architecture)
    model = saved(tmp_path / "model", original)
    loaded = model.load().model
    with torch.no_grad():
        expected = original(input_ids=IDS).logits
        again = loaded(input_ids=IDS).logits
        # Experts that are stored on another axis are multiplied from there.
        torch.testing.assert_close(again, expected, rtol=0, atol=1e-6 if architecture == "gpt_oss" else 0)
        # Blocks one by one, then norm and head.
        entering = block_inputs(loaded, IDS)
        hidden = entering.hidden
        for block, context in zip(blocks_of(loaded), entering.contexts, strict=True):
            hidden = through(block, hidden, context)
        assert Head.of(loaded)(norm_of(loaded)(hidden)).equal(again)
    labels = [linear.label for linear in model.decoder.linears]
    assert len(set(labels)) == len(labels)
    # What is listed is what is there: all of torch's linear modules in the blocks, and all of the experts.
    missed = {
        name
        for name, module in loaded.get_submodule(model.decoder.blocks_path).named_modules()
        if isinstance(module, torch.nn.Linear) and f"{model.decoder.blocks_path}.{name}" not in model.load().linears
    }
    assert all(name.rpartition(".")[2] in ("gate", "router", "shared_expert_gate", "dt_proj") for name in missed)


@everywhere
@pytest.mark.parametrize("size", [2, 3])
def test_samples_end_where_the_whole_model_takes_each(architecture: str, size: int, tmp_path: Path) -> None:
    model = architectures.model_of(architecture)
    unstack(model)
    tokens = torch.arange(3, 3 + 3 * 12).view(3, 12)
    samples = Samples(model, Calibration(tokens, None, {}, ""), States(10**9, tmp_path), size)
    with torch.no_grad():
        for index, block in enumerate(blocks_of(model)):
            samples.run(index, block)
        found = torch.cat([norm_of(model)(samples.states[OWN, number]) for number in range(len(samples.batches))])
        expected = torch.cat([body_of(model)(input_ids=each[None], use_cache=False)[0] for each in tokens])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@everywhere
def test_a_compressed_model_is_the_one_that_transformers_loads(architecture: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", architectures.model_of(architecture))
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    calibration = mp.calibrate(model, text=str(tmp_path / "text.txt"), samples=3, tokens=24)
    mp.compress(model, mp.plan(model, "w3g16", method="gptq"), tmp_path / "out", calibration=calibration)
    kind = class_of(architectures.config_of(architecture))
    assert kind is not None
    theirs = kind.from_pretrained(tmp_path / "out").eval()
    ours = Model(tmp_path / "out").load().model
    with torch.no_grad():
        logits = theirs(input_ids=IDS).logits
        torch.testing.assert_close(ours(input_ids=IDS).logits, logits, rtol=0, atol=1e-6)
        assert not logits.equal(model.load().model(input_ids=IDS).logits)
    # Everything else is as it was, to the byte and by its own name.
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "out"))
    assert before.keys() == after.keys()
    changed = {model.source.stored(linear.weight_name) for linear in model.decoder.linears}
    assert {name for name in before if not before[name].equal(after[name])} == changed


def test_square_matrices_of_experts_are_read_along_the_right_axis(tmp_path: Path) -> None:
    # gpt-oss keeps its experts transposed, and hidden states are as wide as what is inside an expert.
    original = architectures.model_of("gpt_oss", intermediate_size=32)
    model = saved(tmp_path / "model", original)
    opened = model.open_blocks()
    with torch.no_grad():
        hidden = torch.randn(1, 5, 32)
        entering = block_inputs(opened.model, IDS[:, :5])
        with opened.block(0) as block:
            found = through(block, hidden, entering.contexts[0])
        expected = through(original.model.layers[0], hidden, entering.contexts[0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", architectures.TEXT)
def test_sources_of_scales_are_where_they_fold(architecture: str) -> None:
    model = architectures.model_of(architecture, seed=3)
    unstack(model)
    known = {linear.address: linear for linear in map_in(model).linears}
    for group in map_in(model).groups:
        # Behind a norm whose channels change, a router chooses others (tests/compress/test_folding_anywhere.py).
        routed = group.routed is not None and isinstance(group.source, Norm)
        if group.source is None or isinstance(group.source, Nowhere) or routed:
            continue
        block = blocks_of(model)[group[0].layer - 1]
        before = _inputs(model, block, group[0])
        if not len(before):
            continue
        with torch.no_grad():
            if isinstance(group.source, Norm):
                norm = block.get_submodule(group.source.path)
                norm.weight[1] = 2 * (norm.weight[1] + group.source.offset) - group.source.offset
                moved = {1}
            else:
                assert isinstance(group.source, Rows) and group.source.linear.address in known
                weight_of(block, group.source.linear)[1] *= 2
                rows = group.source.of(torch.arange(group[0].in_features))
                moved = set((rows == 1).nonzero().flatten().tolist())
            after = _inputs(model, block, group[0])
        scale = torch.ones(group[0].in_features)
        scale[sorted(moved)] = 2
        torch.testing.assert_close(after, before * scale)


def _inputs(model: Any, block: torch.nn.Module, linear: Linear) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    hook = module_of(block, linear).register_forward_pre_hook(lambda _module, given: seen.append(given[0].clone()))
    with torch.no_grad():
        model(input_ids=IDS)
    hook.remove()
    return seen[0] if seen else torch.empty(0)  # an expert that no token came to


def test_stacked_experts_in_a_file_are_read_and_written_as_stacks(tmp_path: Path) -> None:
    original = architectures.model_of("qwen3_moe")
    model = saved(tmp_path / "apart", original)
    stacked = saved(tmp_path / "stacked", original)
    tensors = load_file(tmp_path / "apart" / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    own = {name: tensor for name, tensor in original.state_dict().items() if ".experts." in name}
    save_file({**kept, **own}, tmp_path / "stacked" / "model.safetensors", metadata={"format": "pt"})
    assert stacked.decoder == model.decoder
    for each in (model, stacked):
        mp.compress(each, mp.plan(each, "w3g16", method="rtn"), tmp_path / f"{Path(each.id).name}-out")
    apart, together = (Model(tmp_path / f"{name}-out").load().model for name in ("apart", "stacked"))
    with torch.no_grad():
        assert apart(input_ids=IDS).logits.equal(together(input_ids=IDS).logits)
    written = load_file(tmp_path / "stacked-out" / "model.safetensors")
    assert own.keys() <= written.keys()


@pytest.mark.parametrize("architecture", ["phi3", "mixtral", "gpt_oss", "deepseek_v3", "qwen3_next", "gemma3"])
def test_a_packed_checkpoint_is_the_dense_one(architecture: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", architectures.model_of(architecture))
    plan = {"default": "w4g8", "method": "rtn", "rules": [{"match": "last_attn", "format": "keep"}]}
    for format in ("dense", "compressed-tensors"):
        mp.compress(model, mp.plan(model, plan), tmp_path / format, format=format)
    dense, packed = (Model(tmp_path / format).load().model for format in ("dense", "compressed-tensors"))
    with torch.no_grad():
        # Fused and stacked matrices are multiplied in other layouts.
        torch.testing.assert_close(packed(input_ids=IDS).logits, dense(input_ids=IDS).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss", "nemotron_h"])
def test_experts_as_modules_compute_what_the_stack_did(architecture: str) -> None:
    changes = {"layers_block_type": ["moe", "attention"], "n_routed_experts": 4} if architecture == "nemotron_h" else {}
    model = architectures.model_of(architecture, **changes)
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        unstack(model)
        # gpt-oss joins gate and up column by column, and products of strided matrices round otherwise.
        torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=0, atol=1e-6)
        assert any(isinstance(module, Experts) for module in model.modules())


#: model_type -> its configuration, and what is said of the model.
_REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    # Experts in stacks that transformers' decorator doesn't know.
    "llama4_text": (
        {**SHAPE, "vocab_size": 384, "intermediate_size_mlp": 48, "num_local_experts": 4},
        r"Llama4ForCausalLM has \d+% of its blocks' weights in feed_forward\.experts\.gate_up_proj, .*only linear",
    ),
    "dbrx": (
        {
            "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "vocab_size": 384,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
            "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
        },
        r"DbrxForCausalLM has \d+% of its blocks' weights in ffn\.experts\.mlp\.w1",
    ),
    # One block of attention, called from several places.
    "zamba2": (
        {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "vocab_size": 384, "num_mem_blocks": 1,
            "layer_types": ["mamba", "hybrid", "mamba", "hybrid"], "n_mamba_heads": 4, "mamba_headdim": 16,
            "mamba_d_state": 8, "mamba_ngroups": 1, "chunk_size": 8, "adapter_rank": 4, "num_attention_heads": 4,
            "attention_hidden_size": 64, "attention_head_dim": 16,
        },
        r"one matrix in model\.layers\.1\.\S+ and in model\.layers\.3\.\S+; blocks that share weights",
    ),
}  # fmt: skip


@pytest.mark.parametrize("architecture", _REFUSED)
def test_what_would_be_compressed_in_part_or_twice_is_refused(architecture: str) -> None:
    keys, said = _REFUSED[architecture]
    config = AutoConfig.for_model(architecture, **keys)
    with pytest.raises(UserError, match=said):
        map_of(config, "here")


@pytest.mark.parametrize(
    ("architecture", "routers"), [("zaya", "mlp.gate.down_proj"), ("hunyuan_v1_moe", "mlp.gate.wg")]
)
def test_routers_of_several_modules_stay_as_they_are(architecture: str, routers: str) -> None:
    keys = {**SHAPE, "vocab_size": 384, "num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 32}
    config = AutoConfig.for_model(architecture, **keys)
    found = map_of(config, "here")
    assert found.experts
    assert f"model.layers.0.{routers}.weight" in found.other
    assert not [linear.address for linear in found.linears if ".gate." in linear.address]


def test_a_gate_of_attention_is_not_the_mlp_s() -> None:
    keys = {**SHAPE, "vocab_size": 384, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    found = map_of(AutoConfig.for_model("afmoe", **keys), "here")
    labels = [linear.label for linear in found.linears]
    assert len(set(labels)) == len(labels)
    assert [each.address for each in select(found.linears, "1_attn_gate")] == ["model.layers.0.self_attn.gate_proj"]
    assert [each.address for each in select(found.linears, "1_gate")] == ["model.layers.0.mlp.gate_proj"]
    assert "model.layers.0.self_attn.gate_proj" in [each.address for each in select(found.linears, "1_attn")]


def test_files_whose_tensors_transformers_joins_are_refused(tmp_path: Path) -> None:
    keys = {**SHAPE, "vocab_size": 384, "layer_types": ["linear_attention", "full_attention"]}
    config = AutoConfig.for_model("olmo_hybrid", pad_token_id=0, **keys)
    kind = class_of(config)
    assert kind is not None
    with pytest.raises(UserError, match=r"k_conv1d\.weight: transformers makes \S+conv1d\.weight of it and others"):
        saved(tmp_path / "model", kind._from_config(config)).load()


def test_logits_that_are_made_in_another_way_are_refused(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", architectures.model_of("granite"))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"my_logit_scaling": 2.0}))
    with pytest.raises(UserError, match=r"my_logit_scaling: 2\.0: what it does to logits is not known here"):
        model.load()
    hidden = architectures.model_of("granite")
    forward = type(hidden).forward

    def scaled(self: object, *args: object, **named: object) -> object:
        made = forward(self, *args, **named)
        made.logits = 3 * made.logits
        return made

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(hidden), "forward", scaled)
        with pytest.raises(UserError, match="GraniteForCausalLM makes its logits in a way that is not known here"):
            saved(tmp_path / "other", hidden).load()
