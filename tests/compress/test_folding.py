"""Folding scales leaves the function of every supported decoder as it was; powers of two leave every bit of it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import SHAPE
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import repeat_kv

from mixprec.compress.folding import Folded, divided, fold, freedom, tie
from mixprec.modules import KINDS, OFFSET_NORMS, SCALE_SOURCES, SUPPORTED_ARCHITECTURES
from mixprec.numerics.statistics import InputStatistics, InputSums

GROUPS = tuple(SCALE_SOURCES["llama"])
TOKENS = torch.arange(24).reshape(2, 12) * 7 % 61
BIASES = {"llama": {"attention_bias": True, "mlp_bias": True}, "qwen3": {"attention_bias": True}}
every_architecture = pytest.mark.parametrize("architecture", SUPPORTED_ARCHITECTURES)


def decoder(architecture: str, dtype: torch.dtype) -> Any:
    """A random decoder with random norms and biases; in float64 its norms compute in float64."""
    torch.manual_seed(2)
    # Soft-capping needs eager attention, whose softmax is float32 in a float64 model.
    capping = {"attn_logit_softcapping": None, "query_pre_attn_scalar": 8} if "gemma" in architecture else {}
    options = {**SHAPE, "vocab_size": 61, **BIASES.get(architecture, {}), **capping}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **options), dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if "norm" in name:
            parameter += 0.3 * torch.randn_like(parameter)
        elif name.endswith("bias"):
            parameter.normal_()
        else:
            parameter.mul_(6)
    model.to(dtype)
    for module in model.modules():
        if dtype == torch.float64 and type(module).__name__.endswith("RMSNorm"):
            module.forward = exact_norm(module, float(architecture in OFFSET_NORMS))
    return model


def exact_norm(norm: Any, offset: float) -> Callable[[Tensor], Tensor]:
    """RMSNorm without transformers' detour through float32."""
    eps = getattr(norm, "variance_epsilon", None) or norm.eps
    return lambda x: (norm.weight + offset) * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(TOKENS, use_cache=False).logits


def random_scale(block: nn.Module, architecture: str, group: tuple[str, ...], allowed: str, seed: int) -> Tensor:
    """Any scales that are allowed, constant on ties."""
    width = block.get_submodule(KINDS[group[0]]).in_features
    noise = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    channels = tie(block, architecture, group)
    noise = noise if channels is None else noise[channels]
    powers = {"powers_up": noise.abs(), "powers_down": -noise.abs(), "fixed": 0 * noise}
    return noise.exp() if allowed == "free" else torch.exp2((2 * powers[allowed]).round())


def fold_everything(model: Any, architecture: str, kept: tuple[str, ...], *, powers: bool = False) -> None:
    """Random scales on every group of every block; what is said to have changed is what has.

    ``powers``: powers of two where any scales are allowed, none where a norm can't be divided by them exactly.
    """
    for index, block in enumerate(model.model.layers):
        for number, group in enumerate(GROUPS):
            before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
            choice = freedom(architecture, group, kept)
            if powers and choice == "free":
                choice = "fixed" if architecture in OFFSET_NORMS and len(group) > 1 else "powers_up"
            scale = random_scale(block, architecture, group, choice, 10 * index + number)
            folded = fold(block, architecture, group, scale, kept=kept)
            changed = [name for name, tensor in block.state_dict().items() if not torch.equal(tensor, before[name])]
            assert sorted(folded.changed) == sorted(changed)
            assert bool(changed) == (choice != "fixed")


@every_architecture
def test_any_scales_leave_the_function(architecture: str) -> None:
    model = decoder(architecture, torch.float64)
    expected = logits(model)
    fold_everything(model, architecture, ())
    assert (logits(model) - expected).abs().max() < 1e-10 * expected.abs().max()
    # A scale that is folded into half of what it belongs to does not go unnoticed.
    model.model.layers[1].mlp.up_proj.weight[3] *= 1.001
    assert (logits(model) - expected).abs().max() > 1e-8 * expected.abs().max()


@every_architecture
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept", [(), ("v", "up"), ("q", "gate"), ("k", "v", "down"), tuple(KINDS)])
def test_powers_of_two_change_not_a_bit(architecture: str, dtype: torch.dtype, kept: tuple[str, ...]) -> None:
    model = decoder(architecture, dtype)
    expected = logits(model)
    fold_everything(model, architecture, kept, powers=True)
    assert torch.equal(logits(model), expected)


@every_architecture
@given(st.sets(st.sampled_from(list(KINDS))))
def test_freedom(architecture: str, kept: set[str]) -> None:
    for group in GROUPS:
        found = freedom(architecture, group, kept)
        source = SCALE_SOURCES[architecture][group]
        producer = {"self_attn.v_proj": "v", "mlp.up_proj": "up"}.get(source)
        if kept >= set(group):
            assert found == "fixed"
        elif kept & set(group):
            assert found == ("fixed" if "gemma" in architecture else "powers_up")
        else:
            assert found == ("powers_down" if producer in kept else "free")


@pytest.mark.parametrize(("heads", "shared"), [(4, 2), (4, 1), (4, 4), (8, 2)])
def test_a_tie_is_what_repeat_kv_does(heads: int, shared: int) -> None:
    config = AutoConfig.for_model(
        "llama", **{**SHAPE, "num_attention_heads": heads, "num_key_value_heads": shared, "vocab_size": 8}
    )
    block = AutoModelForCausalLM.from_config(config).model.layers[0]
    rows = torch.arange(shared * 8).reshape(1, shared, 1, 8)
    assert torch.equal(tie(block, "llama", ("o",)), repeat_kv(rows, heads // shared).flatten())
    assert torch.equal(tie(block, "llama", ("down",)), torch.arange(48))
    assert tie(block, "llama", ("q", "k", "v")) is None


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_a_norm_is_rounded_as_it_is_stored_and_its_readers_make_up_for_it(architecture: str) -> None:
    model = decoder(architecture, torch.float64)
    expected = logits(model)
    for block in model.model.layers:
        for group in (("q", "k", "v"), ("gate", "up")):
            norm = block.get_submodule(SCALE_SOURCES[architecture][group])
            wanted = random_scale(block, architecture, group, "free", 5)
            folded = fold(block, architecture, group, wanted, stored=torch.bfloat16)
            assert torch.equal(norm.weight, norm.weight.bfloat16().double())
            assert not torch.equal(folded.scale, wanted)
            assert (folded.scale / wanted).log().abs().median() < 2**-8
    assert (logits(model) - expected).abs().max() < 1e-10 * expected.abs().max()


def block_of(dtype: torch.dtype) -> nn.Module:
    return decoder("llama", torch.float32).model.layers[0].to(dtype)


def test_dead_and_vanishing_channels_of_a_norm() -> None:
    block = block_of(torch.float16)
    block.input_layernorm.weight[:2] = torch.tensor([0.0, 6e-8])
    scale = torch.full((32,), 3.0)
    folded = fold(block, "llama", ("q", "k", "v"), scale)
    assert folded.scale[0] == 3  # nothing comes through it anyway
    assert folded.scale[1] == 1  # divided by 3 it would be 0
    assert block.input_layernorm.weight[:2].tolist() == torch.tensor([0.0, 6e-8]).half().tolist()


def test_channels_that_would_lose_bits_of_kept_linears_stay() -> None:
    block = block_of(torch.float16)
    block.input_layernorm.weight[0] = 2.0**-14 * 1.5  # loses its last bits when it is halved
    block.input_layernorm.weight[0] += 2.0**-24
    block.self_attn.q_proj.weight[5, 1] = 6e4  # overflows when it is doubled
    block.self_attn.k_proj.weight[5, 2] = 6e4  # is not kept: its values are going to be rounded anyway
    before = {name: tensor.float() for name, tensor in block.state_dict().items()}
    folded = fold(block.float(), "llama", ("q", "k", "v"), torch.full((32,), 2.0), kept=("q",), stored=torch.float16)
    assert folded.scale.tolist() == [1, 1, *[2] * 30]
    after = block.state_dict()
    assert torch.equal(after["self_attn.q_proj.weight"], before["self_attn.q_proj.weight"] * folded.scale)
    assert torch.equal(after["input_layernorm.weight"], before["input_layernorm.weight"] / folded.scale)


def test_rows_that_would_lose_bits_of_a_kept_source_stay() -> None:
    block = block_of(torch.float16)
    block.mlp.up_proj.weight[0, 3] = 6e4
    block.mlp.up_proj.bias[1] = -6e4
    before = block.mlp.up_proj.weight.clone(), block.mlp.up_proj.bias.clone(), block.mlp.down_proj.weight.clone()
    folded = fold(block, "llama", ("down",), torch.full((48,), 0.5), kept=("up",))
    assert folded.scale.tolist() == [1, 1, *[0.5] * 46]
    assert torch.equal(block.mlp.up_proj.weight, before[0] / folded.scale[:, None])
    assert torch.equal(block.mlp.up_proj.bias, before[1] / folded.scale)
    assert torch.equal(block.mlp.down_proj.weight, (before[2] * folded.scale).half())


def test_a_scale_of_ones_touches_nothing() -> None:
    block = block_of(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    for kept in [kinds for count in (0, 1, 7) for kinds in combinations(KINDS, count)]:
        for group in GROUPS:
            ones = torch.ones(block.get_submodule(KINDS[group[0]]).in_features)
            folded = fold(block, "llama", group, ones, kept=kept)
            assert folded.changed == ()
            assert torch.equal(folded.scale, ones)
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


@pytest.mark.parametrize(
    ("group", "kept", "scale", "message"),
    [
        (("down",), (), torch.ones(47), "48 inputs"),
        (("down",), (), torch.zeros(48), "not all positive"),
        (("down",), (), torch.full((48,), float("inf")), "not all positive"),
        (("o",), (), torch.arange(1.0, 33), "the same row"),
        (("down",), ("up",), torch.full((48,), 0.3), "'powers_down'"),
        (("down",), ("up",), torch.full((48,), 2.0), "'powers_down'"),
        (("q", "k", "v"), ("q",), torch.full((32,), 0.5), "'powers_up'"),
        (("down",), ("down",), torch.full((48,), 2.0), "'fixed'"),
        (("down",), ("down",), torch.full((48,), 0.5), "'fixed'"),
    ],
)
def test_scales_that_do_not_fit(group: tuple[str, ...], kept: tuple[str, ...], scale: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fold(block_of(torch.float32), "llama", group, scale, kept=kept)


def test_divided_statistics_are_those_of_divided_inputs() -> None:
    torch.manual_seed(0)
    inputs, full, scale = torch.randn(40, 6), torch.randn(40, 6), torch.rand(6) + 0.2
    sums, expected = InputSums(6, drift=True), InputSums(6, drift=True)
    sums.add(inputs, full=full)
    expected.add(inputs / scale, full=full / scale)
    found: InputStatistics = divided(sums.result(), scale)
    for one, other in zip(found, expected.result(), strict=True):
        torch.testing.assert_close(one, other)


def test_what_folding_returns_can_be_passed_on() -> None:
    block = block_of(torch.float32)
    folded = fold(block, "llama", ("down",), torch.full((48,), 3.0))
    assert folded == Folded(folded.scale, ("mlp.up_proj.weight", "mlp.up_proj.bias", "mlp.down_proj.weight"))
    assert folded.scale.dtype == torch.float32
