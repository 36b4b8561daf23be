"""The decoder's map agrees with the models that transformers builds: names, sizes, groups, sources of scales."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import architectures
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SHAPE, build
from transformers import AutoConfig, AutoModelForCausalLM

from mixprec.core.errors import UserError
from mixprec.importance import attention
from mixprec.models.arch import FAMILIES
from mixprec.models.config import load_config
from mixprec.models.decoder import Decoder, Norm, Rows
from mixprec.models.discover.maps import discovered
from mixprec.models.maps import decoder_of
from mixprec.models.weights import blocks_of, linears_of, module_of, weight_of

families = pytest.mark.parametrize("architecture", FAMILIES)


def parameters(decoder: Decoder) -> dict[str, int]:
    """Name -> number of elements of everything that the map lists."""
    return {linear.weight_name: linear.weights for linear in decoder.linears} | dict(decoder.other)


@st.composite
def sizes(draw: st.DrawFn) -> dict[str, Any]:
    """Keys of a configuration that sizes and biases depend on; what may be left out is left out at times."""
    shared, heads = draw(st.sampled_from([(1, 1), (1, 4), (2, 4), (3, 6), (4, 4)]))
    found = {
        "hidden_size": heads * 2 * draw(st.integers(1, 6)),
        "intermediate_size": draw(st.integers(1, 50)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "vocab_size": draw(st.integers(1, 70)),
        "pad_token_id": None,
    }
    optional = {
        "head_dim": st.sampled_from([2, 8, 10]),
        "attention_bias": st.booleans(),
        "mlp_bias": st.booleans(),
        "tie_word_embeddings": st.booleans(),
    }
    return found | {key: draw(values) for key, values in optional.items() if draw(st.booleans())}


@families
@settings(deadline=None, max_examples=25)
@given(sizes())
def test_sizes_by_arithmetic_are_those_of_the_model(architecture: str, given: Mapping[str, Any]) -> None:
    config = AutoConfig.for_model(architecture, **given)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    decoder = decoder_of(config)
    assert list(decoder.shapes.items()) == [(name, tuple(each.shape)) for name, each in model.state_dict().items()]
    assert decoder == decoder_of({"model_type": architecture, **given})  # what a file may hold, with nothing filled in
    assert parameters(decoder) == {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert [name for name in parameters(decoder) if name in decoder.other] == list(decoder.other)
    assert decoder.parameters == model.num_parameters()
    assert [(each.out_features, each.in_features) for each in decoder.linears] == [
        (linear.out_features, linear.in_features) for linear in linears_of(model).values()
    ]
    widths = {name: getattr(module, "embedding_dim", None) or module.weight.shape[0] for name, module in (
        (name, model.get_submodule(name)) for name in decoder.outputs
    )}  # fmt: skip
    assert decoder.outputs == widths


@families
def test_what_a_file_leaves_out_is_what_transformers_takes(architecture: str) -> None:
    assert decoder_of({"model_type": architecture}) == decoder_of(AutoConfig.for_model(architecture))


@families
def test_what_a_table_says_is_what_is_seen_of_the_model(architecture: str) -> None:
    config = AutoConfig.for_model(architecture, **SHAPE)
    table, (seen, names) = decoder_of(config), discovered(config, "here")
    assert seen.linears == table.linears and seen.shapes == table.shapes and seen.outputs == table.outputs
    assert [(group.linears, group.fused) for group in seen.groups] == [
        (group.linears, group.fused) for group in table.groups
    ]
    assert (seen.blocks_path, seen.around, seen.norm, seen.head) == (
        table.blocks_path, table.around, table.norm, table.head
    )  # fmt: skip
    assert all(names.of(name) == name for name in table.shapes) and not names.stacks


@pytest.mark.parametrize("implementation", [attention.IMPLEMENTATION, "eager"])
def test_how_a_running_model_attends_changes_no_map(implementation: str) -> None:
    """Importance lets models use an attention of its own, which computes no shapes."""
    model = architectures.model_of("smollm3")
    plain, _ = discovered(model.config, "here")
    with attention.using(model, implementation):
        assert discovered(model.config, "here")[0] == plain
    assert plain.groups[0].source is not None and len(plain.groups[0]) == 3


@families
def test_sources_are_what_the_inputs_of_a_group_come_from(architecture: str) -> None:
    # A channel of a group's input moves when its source's moves, and with no other norm or linear between the two.
    loaded = build(architecture, num_hidden_layers=1)
    known = decoder_of(loaded.model.config).blocks[0]
    block = blocks_of(loaded.model)[0]
    called: list[str] = []
    for name, module in block.named_modules():
        if not list(module.children()):
            module.register_forward_pre_hook(lambda _module, _inputs, name=name: called.append(name))
    # A block's modules in the order in which they run, per-head norms, dropout and activations left out.
    hidden = torch.randn(1, 3, SHAPE["hidden_size"])
    angles = (torch.ones(1, 3, SHAPE["head_dim"]), torch.zeros(1, 3, SHAPE["head_dim"]))
    block(hidden, position_embeddings=angles, attention_mask=None)
    order = [name for name in called if name in {*known.norms, *(linear.module for linear in known.linears)}]
    assert sorted(order) == sorted({*known.norms, *(linear.module for linear in known.linears)})
    for group in known.groups:
        if isinstance(group.source, Norm):
            assert order[min(order.index(linear.module) for linear in group) - 1] == group.source.path
    assert [group.source.linear.kind for group in known.groups if isinstance(group.source, Rows)] == ["v", "up"]


@families
@pytest.mark.parametrize("kind", ["o", "down"])
def test_a_row_of_a_source_is_the_only_one_that_its_channels_come_from(architecture: str, kind: str) -> None:
    loaded = build(architecture, num_hidden_layers=1, seed=3)
    decoder = decoder_of(loaded.model.config)
    block = blocks_of(loaded.model)[0]
    group = next(group for group in decoder.groups if group[0].kind == kind)
    assert isinstance(group.source, Rows)
    rows = group.source.of(torch.arange(group[0].in_features))
    seen: list[torch.Tensor] = []
    module_of(block, group[0]).register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].clone()))
    with torch.no_grad():
        for _ in range(2):
            loaded.model(torch.arange(5)[None])
            weight_of(block, group.source.linear)[1] *= 2
    moved = (seen[0] != seen[1]).any(1)[0]
    assert moved.nonzero().flatten().tolist() == (rows == 1).nonzero().flatten().tolist() != []


@families
def test_norms_that_add_to_their_weight(architecture: str) -> None:
    model = build(architecture).model
    decoder = decoder_of(model.config)
    norm = model.get_submodule(decoder.norm)
    norm.weight.data.zero_()
    moved = norm(torch.ones(1, SHAPE["hidden_size"])).abs().max() > 0
    source = decoder.groups[0].source
    assert isinstance(source, Norm)
    assert source.offset == float(moved)


def test_fused_matrices_have_the_names_that_vllm_gives_them() -> None:
    groups = decoder_of({"model_type": "llama"}).blocks[2].groups
    assert [group.fused for group in groups] == [
        "model.layers.2.self_attn.qkv_proj", None, "model.layers.2.mlp.gate_up_proj", None
    ]  # fmt: skip


def test_a_map_of_one_linear_alone() -> None:
    decoder = decoder_of({"model_type": "llama"})
    alone = decoder.alone(decoder["model.layers.3.mlp.up_proj"])
    assert [linear.label for linear in alone.linears] == ["4_up"]
    assert alone.parameters == 4096 * 11008


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gpt2"}, r"GPT2LMHeadModel has no linear modules in its blocks"),
        ({"model_type": "foo"}, r"architecture 'foo' is not known to transformers 5"),
        ({"model_type": None}, r"architecture None is not known"),
        ({"model_type": ["llama"]}, r"architecture \['llama'\] is not known"),
        ({"model_type": "t5"}, r"t5 is an encoder-decoder"),
        ({"model_type": "vit"}, r"transformers builds no language model of the architecture 'vit'"),
        ({"hidden_size": None}, r"hidden_size: None is no number from 1 to 16,777,216"),
        ({"vocab_size": "x"}, r"vocab_size: 'x' is no number"),
        ({"num_hidden_layers": 1_001}, r"num_hidden_layers: 1001 is no number from 1 to 1,000"),
        ({"head_dim": 0}, r"head_dim: 0 is no number"),
        ({"hidden_size": 16}, r"hidden_size: 16 is less than num_attention_heads, 32"),
        ({"num_key_value_heads": 5}, r"num_key_value_heads: 5 doesn't divide num_attention_heads, 32"),
        ({"num_key_value_heads": 64}, r"num_key_value_heads: 64 doesn't divide num_attention_heads, 32"),
    ],
)
def test_what_no_map_can_be_made_of_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"^here: .*{said}"):
        decoder_of({"model_type": "llama", **changes}, "here")


def test_a_map_is_made_without_torch() -> None:
    code = (
        "import sys; from mixprec.models.maps import decoder_of; from mixprec.models.labels import select;"
        "select(decoder_of({'model_type': 'gemma2'}).linears, 'last_mlp');"
        "assert not {'torch', 'transformers'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_decoder_is_data() -> None:
    decoder = decoder_of({"model_type": "qwen3"})
    assert replace(decoder) == decoder
    assert decoder["model.layers.0.mlp.up_proj"].label == "1_up"
    with pytest.raises(KeyError):
        decoder["model.layers.99.mlp.up_proj"]


def test_a_tied_head_counts_once() -> None:
    tied, untied = (decoder_of(build(tie_word_embeddings=tied).model.config) for tied in (True, False))
    assert set(untied.other) - set(tied.other) == {untied.head_weight} == {"lm_head.weight"}


def test_the_papers_model() -> None:
    decoder = decoder_of(load_config("deepseek-ai/DeepSeek-R1-Distill-Llama-8B"))
    assert len(decoder.linears) == 224
    assert decoder.parameters == 8_030_261_248
    up = decoder["model.layers.31.mlp.up_proj"]
    assert (up.label, up.out_features, up.in_features) == ("32_up", 14336, 4096)


def test_groups_partition_the_model() -> None:
    decoder = decoder_of({"model_type": "llama"})
    assert [[linear.label for linear in group] for group in decoder.groups[:4]] == [
        ["1_q", "1_k", "1_v"], ["1_o"], ["1_gate", "1_up"], ["1_down"]
    ]  # fmt: skip
    assert [linear for group in decoder.groups for linear in group] == list(decoder.linears)
    assert all(linear in decoder.group_of(linear) for linear in decoder.linears)
