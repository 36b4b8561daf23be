"""Modules: names, selectors, and inventories that agree with the models that transformers builds."""

from __future__ import annotations

import fnmatch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import SHAPE, build
from transformers import AutoConfig

from mixprec import modules
from mixprec.core.errors import UserError
from mixprec.models.config import load_config
from mixprec.models.load import LoadedModel

LAYERS = 12
INVENTORY = modules.inventory(AutoConfig.for_model("llama", **{**SHAPE, "num_hidden_layers": LAYERS, "vocab_size": 64}))
layers = st.integers(1, LAYERS)
kinds = st.sampled_from(list(modules.KINDS))


def labels(selector: str) -> list[str]:
    return [module.label for module in modules.select(INVENTORY.linears, selector)]


@given(layers, kinds)
def test_addresses_and_labels_name_one_module(layer: int, kind: str) -> None:
    address = modules.address(layer, kind)
    assert modules.parse_address(address) == (layer, kind)
    assert labels(address) == labels(f"{layer}_{kind}") == [f"{layer}_{kind}"]
    module = INVENTORY[address]
    assert (module.layer, module.kind, module.weight_name) == (layer, kind, f"{address}.weight")


@given(
    st.sampled_from([*map(str, range(1, LAYERS + 1)), "last", "*"]),
    st.sampled_from([*modules.KINDS, "attn", "mlp", "*"]),
)
def test_a_label_selects_a_layer_times_kinds_in_the_models_order(layer: str, kind: str) -> None:
    chosen_layers = range(1, LAYERS + 1) if layer == "*" else [LAYERS if layer == "last" else int(layer)]
    chosen_kinds = {"attn": "q k v o", "mlp": "gate up down", "*": "q k v o gate up down"}.get(kind, kind).split()
    assert labels(f"{layer}_{kind}") == [f"{a}_{b}" for a in chosen_layers for b in chosen_kinds]


@given(
    st.lists(
        st.sampled_from(["model.layers.", "*", "?", "1", "[0-3]", ".mlp.", ".self_attn.", "up_proj", "*_proj"]),
        min_size=1,
        max_size=6,
    )
)
def test_other_selectors_are_globs_over_addresses(parts: list[str]) -> None:
    glob = "".join(parts)
    if modules._LABEL.fullmatch(glob):
        return
    expected = [m.label for m in INVENTORY.linears if fnmatch.fnmatchcase(m.address, glob)]
    if expected:
        assert labels(glob) == expected
    else:
        with pytest.raises(UserError, match="matches no module"):
            labels(glob)


@pytest.mark.parametrize(
    ("selector", "hint"),
    [
        ("13_up", r"layers are 1 to 12"),
        ("0_up", r"did you mean .*10_up"),
        ("12_upp", r"did you mean 12_up"),
        ("last_foo", r"kinds q, k, v, o, gate, up, down, attn, mlp"),
        ("LAST_up", r"labels such as 12_up, last_mlp"),
        ("model.layers.11.mlp.up", r"did you mean model\.layers\.11\.mlp\.up_proj"),
        ("", r"a glob such as model\.layers\.\*\."),
    ],
)
def test_a_selector_that_matches_nothing_says_what_would(selector: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint) as caught:
        labels(selector)
    assert f"selector {selector!r}" in str(caught.value)


@pytest.mark.parametrize("architecture", modules.SUPPORTED_ARCHITECTURES)
def test_the_inventory_has_every_parameter_of_the_real_model(architecture: str) -> None:
    # Biases and a head of its own where the architecture may have them.
    model = build(architecture, attention_bias=True, tie_word_embeddings=False).model
    found = modules.inventory(model.config)
    listed = {module.weight_name: module.weights for module in found.linears} | found.other
    assert listed == {name: parameter.numel() for name, parameter in model.named_parameters()}
    real = LoadedModel(model, None).linears
    assert [module.address for module in found.linears] == list(real)
    assert [(module.out_features, module.in_features) for module in found.linears] == [
        tuple(linear.weight.shape) for linear in real.values()
    ]
    assert found.layers == SHAPE["num_hidden_layers"]


def test_a_tied_head_counts_once() -> None:
    tied, untied = (modules.inventory(build(tie_word_embeddings=tied).model.config).other for tied in (True, False))
    assert set(untied) - set(tied) == {"lm_head.weight"}


def test_the_papers_model() -> None:
    inventory = modules.inventory(load_config("deepseek-ai/DeepSeek-R1-Distill-Llama-8B"))
    assert len(inventory.linears) == 224
    assert sum(m.weights for m in inventory.linears) + sum(inventory.other.values()) == 8_030_261_248
    up = inventory["model.layers.31.mlp.up_proj"]
    assert (up.label, up.out_features, up.in_features) == ("32_up", 14336, 4096)


def test_fused_groups_partition_the_model() -> None:
    groups = modules.fused_groups(INVENTORY)
    assert [[module.label for module in group] for group in groups[:4]] == [
        ["1_q", "1_k", "1_v"], ["1_o"], ["1_gate", "1_up"], ["1_down"]
    ]  # fmt: skip
    assert [module for group in groups for module in group] == list(INVENTORY.linears)


def test_other_architectures_are_refused_with_the_supported_ones_named() -> None:
    with pytest.raises(UserError, match=r"'gpt2' is not supported.*llama.*qwen2.*qwen3.*mistral.*gemma"):
        modules.inventory(AutoConfig.for_model("gpt2"))


@pytest.mark.parametrize("architecture", modules.SUPPORTED_ARCHITECTURES)
def test_scale_sources_are_what_the_inputs_of_a_group_come_from(architecture: str) -> None:
    # The numbers that enter a group move when its source moves, and with no other norm or linear between the two.
    block = build(architecture, num_hidden_layers=1).model.model.layers[0]
    sources = modules.SCALE_SOURCES[architecture]
    assert [kind for group in sources for kind in group] == list(modules.KINDS)
    assert [tuple(m.kind for m in group) for group in modules.fused_groups(INVENTORY)[:4]] == list(sources)
    called: list[str] = []
    for name, module in block.named_modules():
        if not list(module.children()):
            module.register_forward_pre_hook(lambda _module, _inputs, name=name: called.append(name))
    # A block's modules in the order in which they run, per-head norms, dropout and activations left out.
    hidden = torch.randn(1, 3, SHAPE["hidden_size"])
    angles = (torch.ones(1, 3, SHAPE["head_dim"]), torch.zeros(1, 3, SHAPE["head_dim"]))
    block(hidden, position_embeddings=angles, attention_mask=None)
    order = [name for name in called if name in {*modules.BLOCK_NORMS, *modules.KINDS.values()}]
    for group in (("q", "k", "v"), ("gate", "up")):
        first = min(order.index(modules.KINDS[kind]) for kind in group)
        assert order[first - 1] == sources[group]
    assert sources["o",] == modules.KINDS["v"]
    assert sources["down",] == modules.KINDS["up"]


@pytest.mark.parametrize("architecture", modules.SUPPORTED_ARCHITECTURES)
def test_norms_that_add_one_to_their_weight(architecture: str) -> None:
    norm = build(architecture).model.model.norm
    norm.weight.data.zero_()
    moved = norm(torch.ones(1, SHAPE["hidden_size"])).abs().max() > 0
    assert moved == (architecture in modules.OFFSET_NORMS)
