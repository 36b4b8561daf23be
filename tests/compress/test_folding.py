"""Folding scales leaves the function of every supported decoder as it was; powers of two leave every bit of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
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
from mixprec.core.errors import UserError
from mixprec.models.arch import FAMILIES
from mixprec.models.decoder import Group, Norm
from mixprec.models.labels import KINDS
from mixprec.models.maps import decoder_of
from mixprec.models.weights import blocks_of
from mixprec.numerics.statistics import InputStatistics, InputSums

TOKENS = torch.arange(24).reshape(2, 12) * 7 % 61
BIASES = {"llama": {"attention_bias": True, "mlp_bias": True}, "qwen3": {"attention_bias": True}}
every_architecture = pytest.mark.parametrize("architecture", FAMILIES)
QKV, OUT, GATE_UP, DOWN = decoder_of({"model_type": "llama", **SHAPE}).blocks[0].groups


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
            module.forward = exact_norm(module, FAMILIES[architecture].offset)
    return model


def exact_norm(norm: Any, offset: float) -> Callable[[Tensor], Tensor]:
    """RMSNorm without transformers' detour through float32."""
    eps = getattr(norm, "variance_epsilon", None) or norm.eps
    return lambda x: (norm.weight + offset) * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(TOKENS, use_cache=False).logits


def addresses(kept: Iterable[str], groups: Sequence[Group]) -> set[str]:
    """Of the kinds that are kept."""
    return {linear.address for group in groups for linear in group if linear.kind in set(kept)}


def random_scale(group: Group, allowed: str, seed: int) -> Tensor:
    """Any scales that are allowed, constant on ties."""
    noise = torch.randn(group[0].in_features, generator=torch.Generator().manual_seed(seed))
    channels = tie(group)
    noise = noise if channels is None else noise[channels]
    powers = {"powers_up": noise.abs(), "powers_down": -noise.abs(), "fixed": 0 * noise}
    return noise.exp() if allowed == "free" else torch.exp2((2 * powers[allowed]).round())


def fold_everything(model: Any, kept: tuple[str, ...], *, powers: bool = False) -> None:
    """Random scales on every group of every block; what is said to have changed is what has.

    ``powers``: powers of two where any scales are allowed, none where a norm can't be divided by them exactly.
    """
    for index, (block, known) in enumerate(zip(blocks_of(model), decoder_of(model.config).blocks, strict=True)):
        held = addresses(kept, known.groups)
        for number, group in enumerate(known.groups):
            before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
            choice = freedom(group, held)
            if powers and choice == "free":
                choice = "fixed" if isinstance(group.source, Norm) and group.source.offset else "powers_up"
            scale = random_scale(group, choice, 10 * index + number)
            folded = fold(block, group, scale, kept=held)
            changed = [name for name, tensor in block.state_dict().items() if not torch.equal(tensor, before[name])]
            assert sorted(folded.changed) == sorted(changed)
            assert bool(changed) == (choice != "fixed")


@every_architecture
def test_any_scales_leave_the_function(architecture: str) -> None:
    model = decoder(architecture, torch.float64)
    expected = logits(model)
    fold_everything(model, ())
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
    fold_everything(model, kept, powers=True)
    assert torch.equal(logits(model), expected)


@every_architecture
@given(st.sets(st.sampled_from(list(KINDS))))
def test_freedom(architecture: str, kept: set[str]) -> None:
    groups = decoder_of({"model_type": architecture}).blocks[0].groups
    for group in groups:
        found = freedom(group, addresses(kept, groups))
        kinds = {linear.kind for linear in group}
        producer = {"o": "v", "down": "up"}.get(group[0].kind)
        if kept >= kinds:
            assert found == "fixed"
        elif kept & kinds:
            assert found == ("fixed" if "gemma" in architecture else "powers_up")
        else:
            assert found == ("powers_down" if producer in kept else "free")


@pytest.mark.parametrize(("heads", "shared"), [(4, 2), (4, 1), (4, 4), (8, 2)])
def test_a_tie_is_what_repeat_kv_does(heads: int, shared: int) -> None:
    config = AutoConfig.for_model(
        "llama", **{**SHAPE, "num_attention_heads": heads, "num_key_value_heads": shared, "vocab_size": 8}
    )
    qkv, o, _, down = decoder_of(config).blocks[0].groups
    rows = torch.arange(shared * 8).reshape(1, shared, 1, 8)
    assert torch.equal(tie(o), repeat_kv(rows, heads // shared).flatten())
    assert torch.equal(tie(down), torch.arange(48))
    assert tie(qkv) is None


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_a_norm_is_rounded_as_it_is_stored_and_its_readers_make_up_for_it(architecture: str) -> None:
    model = decoder(architecture, torch.float64)
    expected = logits(model)
    for block, known in zip(blocks_of(model), decoder_of(model.config).blocks, strict=True):
        for group in known.groups[::2]:
            assert isinstance(group.source, Norm)
            norm = block.get_submodule(group.source.path)
            wanted = random_scale(group, "free", 5)
            folded = fold(block, group, wanted, stored=torch.bfloat16)
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
    folded = fold(block, QKV, scale)
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
    folded = fold(block.float(), QKV, torch.full((32,), 2.0), kept=[QKV[0].address], stored=torch.float16)
    assert folded.scale.tolist() == [1, 1, *[2] * 30]
    after = block.state_dict()
    assert torch.equal(after["self_attn.q_proj.weight"], before["self_attn.q_proj.weight"] * folded.scale)
    assert torch.equal(after["input_layernorm.weight"], before["input_layernorm.weight"] / folded.scale)


def test_rows_that_would_lose_bits_of_a_kept_source_stay() -> None:
    block = block_of(torch.float16)
    block.mlp.up_proj.weight[0, 3] = 6e4
    block.mlp.up_proj.bias[1] = -6e4
    before = block.mlp.up_proj.weight.clone(), block.mlp.up_proj.bias.clone(), block.mlp.down_proj.weight.clone()
    folded = fold(block, DOWN, torch.full((48,), 0.5), kept=[GATE_UP[1].address])
    assert folded.scale.tolist() == [1, 1, *[0.5] * 46]
    assert torch.equal(block.mlp.up_proj.weight, before[0] / folded.scale[:, None])
    assert torch.equal(block.mlp.up_proj.bias, before[1] / folded.scale)
    assert torch.equal(block.mlp.down_proj.weight, (before[2] * folded.scale).half())


def test_a_scale_of_ones_touches_nothing() -> None:
    block = block_of(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    for kept in [kinds for count in (0, 1, 7) for kinds in combinations(KINDS, count)]:
        for group in (QKV, OUT, GATE_UP, DOWN):
            ones = torch.ones(group[0].in_features)
            folded = fold(block, group, ones, kept=addresses(kept, (QKV, OUT, GATE_UP, DOWN)))
            assert folded.changed == ()
            assert torch.equal(folded.scale, ones)
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


@pytest.mark.parametrize(
    ("group", "kept", "scale", "message"),
    [
        (DOWN, (), torch.ones(47), "48 inputs"),
        (DOWN, (), torch.zeros(48), "not all positive"),
        (DOWN, (), torch.full((48,), float("inf")), "not all positive"),
        (OUT, (), torch.arange(1.0, 33), "the same row"),
        (DOWN, ("up",), torch.full((48,), 0.3), "'powers_down'"),
        (DOWN, ("up",), torch.full((48,), 2.0), "'powers_down'"),
        (QKV, ("q",), torch.full((32,), 0.5), "'powers_up'"),
        (DOWN, ("down",), torch.full((48,), 2.0), "'fixed'"),
        (DOWN, ("down",), torch.full((48,), 0.5), "'fixed'"),
    ],
)
def test_scales_that_do_not_fit(group: Group, kept: tuple[str, ...], scale: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fold(block_of(torch.float32), group, scale, kept=addresses(kept, (QKV, OUT, GATE_UP, DOWN)))


def test_a_group_whose_inputs_come_from_nowhere_known_is_refused_by_name() -> None:
    unknown = replace(QKV, source=None)
    for asked in (lambda: freedom(unknown, ()), lambda: tie(unknown)):
        with pytest.raises(UserError, match=r"model\.layers\.0\.self_attn\.q_proj, .*: nothing is known that a scale"):
            asked()


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
    folded = fold(block, DOWN, torch.full((48,), 3.0))
    assert folded == Folded(folded.scale, ("mlp.up_proj.weight", "mlp.up_proj.bias", "mlp.down_proj.weight"))
    assert folded.scale.dtype == torch.float32
