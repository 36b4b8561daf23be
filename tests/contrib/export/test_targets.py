"""Exported plans, read back by an independent reader of each syntax: every module gets exactly what the plan says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import gguf
import interpret
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from mixprec.cli.export import Target
from mixprec.contrib.export import TARGETS, llamacpp
from mixprec.core.errors import UserError
from mixprec.models.arch import FAMILIES
from mixprec.models.decoder import Decoder
from mixprec.models.maps import decoder_of
from mixprec.numerics.formats import Keep, parse_format
from mixprec.plan.schema import ModulePlan, Plan

COMMON = ("w2g32", "w3g32", "w3g64", "w4g64", "w8g64", "w3", "keep")
FORMATS = {
    "gptqmodel": (*COMMON, "w5g32", "w4g64_asym", "w3g16_asym"),
    "llmcompressor": (*COMMON, "w7g32", "w4g64_asym", "w8g64_asym"),
    "autoround": (*COMMON, "w5g32", "w4g64_asym", "w7g32_asym"),
    "modelopt": COMMON,
}
relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)


def plan_of(inventory: Decoder, formats: Mapping[str, str] | str) -> Plan:
    """A plan from address -> format, or with one format for all modules."""
    chosen = {
        module.address: ModulePlan(format=formats if isinstance(formats, str) else formats[module.address])
        for module in inventory.linears
    }
    return Plan(model="m", method="rtn", modules=chosen)


@st.composite
def plans(draw: st.DrawFn, inventory: Decoder, names: tuple[str, ...]) -> Plan:
    """A format for most modules, any for some others; something is quantized."""
    chosen = dict.fromkeys([module.address for module in inventory.linears], draw(st.sampled_from(names)))
    chosen |= draw(st.dictionaries(st.sampled_from(sorted(chosen)), st.sampled_from(names)))
    chosen[draw(st.sampled_from(sorted(chosen)))] = draw(st.sampled_from([name for name in names if name != "keep"]))
    return plan_of(inventory, chosen)


def grid_of(format: Any) -> interpret.Grid | None:
    return None if isinstance(format, Keep) else interpret.Grid(format.bits, format.group_size, format.symmetric)


@pytest.mark.parametrize("target", FORMATS)
@relaxed
@given(data=st.data())
def test_every_module_gets_what_the_plan_says(target: str, small: Decoder, data: st.DataObject) -> None:
    plan = data.draw(plans(small, FORMATS[target]))
    text = TARGETS[target](plan, small, "rtn")
    found = interpret.READERS[target](text, [*plan.modules, small.head])
    assert found == {address: grid_of(format) for address, format in plan.formats.items()} | {small.head: None}


@relaxed
@given(data=st.data())
def test_every_tensor_gets_the_nearest_type(wide: Decoder, data: st.DataObject) -> None:
    plan = data.draw(plans(wide, ("w2g64", "w3", "w4g64_asym", "w5g32", "w6g32", "w7g32", "w8", "keep")))
    found = interpret.llamacpp(TARGETS["llamacpp"](plan, wide, "rtn"), plan.modules, wide.layers)
    types = {2: "q2_k", 3: "q3_k", 4: "q4_k", 5: "q5_k", 6: "q6_k", 7: "q8_0", 8: "q8_0"}
    expected = {a: "f16" if isinstance(f, Keep) else types[f.bits] for a, f in plan.formats.items()}
    assert found == expected


@pytest.mark.parametrize(
    ("format", "kind"), [("w4g64", "q4_0"), ("w4g64_asym", "q4_1"), ("w5_asym", "q5_1"), ("w6", "q8_0")]
)
def test_rows_that_256_does_not_divide_get_types_with_small_blocks(small: Decoder, format: str, kind: str) -> None:
    text = TARGETS["llamacpp"](plan_of(small, format), small, "rtn")
    assert set(interpret.llamacpp(text, [m.address for m in small.linears], small.layers).values()) == {kind}


def test_types_divide_the_rows_they_are_given_to() -> None:
    """gguf's own table of blocks."""
    for columns in (32, 96, 256, 576, 1536, 4096):
        for format in ("w2", "w3", "w4", "w4_asym", "w5", "w5_asym", "w6", "w7", "w8", "keep"):
            kind = llamacpp.tensor_type(parse_format(format), columns)
            if kind:
                block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]]
                assert columns % block == 0
    assert llamacpp.tensor_type(parse_format("w4"), 40) is None


@pytest.mark.parametrize("architecture", FAMILIES)
def test_names_of_tensors_are_those_of_every_architecture(architecture: str) -> None:
    """The exporter uses one architecture's table for all."""
    names = {"gemma3_text": "gemma3", "mistral": "llama"}
    archs = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(archs[names.get(architecture, architecture)], 2)
    shape = {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 192, "vocab_size": 64}
    inventory = decoder_of(
        AutoConfig.for_model(architecture, num_attention_heads=4, num_key_value_heads=2, head_dim=32, **shape)
    )
    text = TARGETS["llamacpp"](plan_of(inventory, "w8g32"), inventory, "rtn")
    found = interpret.llamacpp(text, [module.address for module in inventory.linears], 2)
    assert set(found.values()) == {"q8_0"}
    llama = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for module in inventory.linears:
        assert table.get_name(module.address) == llama.get_name(module.address)


def test_plans_are_compact(llama_8b: Decoder) -> None:
    """Protection of the last MLP takes one line, not 224."""
    kept = {module.address: "keep" if module.label.startswith("32_") and ".mlp." in module.address else "w3g128"
            for module in llama_8b.linears}  # fmt: skip
    plan = plan_of(llama_8b, kept)
    config = json.loads(TARGETS["gptqmodel"](plan, llama_8b, "gptq"))
    assert config["dynamic"] == {r"-:^model\.layers\.31\.mlp\.(gate_proj|up_proj|down_proj)$": {}}
    assert (config["bits"], config["group_size"], config["sym"]) == (3, 128, True)
    recipe = TARGETS["llmcompressor"](plan, llama_8b, "gptq")
    assert recipe.count("- re:") == 3
    lines = TARGETS["llamacpp"](plan, llama_8b, "gptq").splitlines()
    assert lines[-1] == r"^blk\.31\.(ffn_gate\.weight|ffn_up\.weight|ffn_down\.weight)$=f16"
    assert len(lines) == 3


def test_methods_become_the_targets_own(small: Decoder) -> None:
    plan = plan_of(small, "w4g64")
    assert json.loads(TARGETS["gptqmodel"](plan, small, "gptaq"))["gptaq"]["alpha"] == 0.25
    assert json.loads(TARGETS["gptqmodel"](plan, small, "awq"))["method"] == "awq"
    assert json.loads(TARGETS["autoround"](plan, small, "rtn"))["iters"] == 0
    assert "iters" not in json.loads(TARGETS["autoround"](plan, small, "gptq"))
    assert json.loads(TARGETS["modelopt"](plan, small, "awq"))["algorithm"] == "awq_lite"
    (stage,) = yaml.safe_load(TARGETS["llmcompressor"](plan, small, "awq")).values()
    (modifiers,) = stage.values()
    assert list(modifiers) == ["AWQModifier", "QuantizationModifier"]


@pytest.mark.parametrize(
    ("target", "format", "method", "message"),
    [
        ("gptqmodel", "w3g48", "gptq", "layers.0.self_attn.q_proj and 83 more: w3g48: GPTQModel holds groups of 16"),
        ("gptqmodel", "w3g64_asym", "any4", "method: 'any4' is not one of GPTQModel's: gptq, gptaq, awq, rtn"),
        ("gptqmodel", "w3g128", "gptq", "layers.0.mlp.down_proj and 11 more: w3g128: GPTQModel wants groups"),
        ("gptqmodel", "w3", "awq", "w3: GPTQModel's AWQ holds groups of 16, 32, 64, 128; keep them"),
        ("llmcompressor", "w3g128", "gptq", "w3g128: llm-compressor wants groups that divide the 192 columns"),
        ("llmcompressor", "w3g64", "gptaq", "method: 'gptaq' is not one of llm-compressor's: rtn, gptq, awq"),
        ("autoround", "w8g64_asym", "rtn", "AutoRound holds 2, 3, 4, 5, 6, 7, 8 bits symmetric and 2, 3, 4, 5, 6, 7"),
        ("modelopt", "w4g64_asym", "rtn", "w4g64_asym: ModelOpt holds 2, 3, 4, 5, 6, 7, 8 bits symmetric; keep them"),
        ("llamacpp", "w3g64", "rtn", "2 and 3 bits want rows of a multiple of 256 weights, these have 128; give"),
        ("gptqmodel", "keep", "gptq", "keeps every module"),
        ("llmcompressor", "keep", "gptq", "keeps every module"),
    ],
)  # fmt: skip
def test_what_a_target_cannot_hold_is_said(small: Decoder, target: str, format: str, method: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        TARGETS[target](plan_of(small, format), small, method)
    assert message in str(caught.value)


def test_gptqmodel_s_awq_has_one_format(small: Decoder) -> None:
    chosen = dict.fromkeys([module.address for module in small.linears], "w4g64")
    chosen["model.layers.3.mlp.up_proj"] = "keep"
    config = json.loads(TARGETS["gptqmodel"](plan_of(small, chosen), small, "awq"))
    assert list(config["dynamic"].values()) == [{}]
    chosen["model.layers.4.mlp.up_proj"] = "w3g64"
    with pytest.raises(UserError, match=r"layers.4.mlp.up_proj: w3g64: GPTQModel's AWQ has one format"):
        TARGETS["gptqmodel"](plan_of(small, chosen), small, "awq")


def test_gptqmodel_s_awq_folds_into_nothing_that_is_kept(small: Decoder) -> None:
    kept = {module.address: "keep" for module in small.linears if module.layer == 1 and module.kind in ("gate", "up")}
    plan = plan_of(small, {module.address: "w3g64" for module in small.linears} | kept)
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.down_proj: w3g64: GPTQModel's AWQ .* 1_gate, 1_up are all"):
        TARGETS["gptqmodel"](plan, small, "awq")
    TARGETS["gptqmodel"](plan, small, "gptq")


def test_llm_compressor_s_awq_has_one_format_per_input(small: Decoder) -> None:
    chosen = dict.fromkeys([module.address for module in small.linears], "w4g64")
    chosen |= {"model.layers.3.mlp.up_proj": "keep", "model.layers.3.mlp.down_proj": "w3g64"}
    plan = plan_of(small, chosen)
    found = interpret.llmcompressor(TARGETS["llmcompressor"](plan, small, "awq"), [*plan.modules, small.head])
    assert found == {address: grid_of(format) for address, format in plan.formats.items()} | {small.head: None}
    chosen["model.layers.4.self_attn.v_proj"] = "w3g64"
    with pytest.raises(
        UserError, match=r"layers.4.self_attn.v_proj: w3g64: .* model.layers.4.self_attn.q_proj has w4g64"
    ):
        TARGETS["llmcompressor"](plan_of(small, chosen), small, "awq")


def test_every_format_that_does_not_fit_is_told_at_once(small: Decoder) -> None:
    chosen = dict.fromkeys([module.address for module in small.linears], "w3g64")
    chosen["model.layers.3.mlp.up_proj"] = "w4g64_asym"
    chosen["model.layers.5.mlp.down_proj"] = "w3g128"
    with pytest.raises(UserError) as caught:
        TARGETS["modelopt"](plan_of(small, chosen), small, "rtn")
    assert "model.layers.3.mlp.up_proj: w4g64_asym: " in str(caught.value)
    assert "model.layers.5.mlp.down_proj: w3g128: " in str(caught.value)


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_no_integer_grid_has_no_counterpart(target: str, small: Decoder) -> None:
    plan = plan_of(small, "w4g64")
    plan.modules["model.layers.2.mlp.up_proj"] = ModulePlan(format="any4g64", method="anyk")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"layers.2.mlp.up_proj: any4g64: .* holds integers in groups only"):
        TARGETS[target](plan, small, "gptq")


def test_gptqmodel_is_told_not_to_sort_whole_rows(small: Decoder) -> None:
    chosen = dict.fromkeys([module.address for module in small.linears], "w3")
    mixed = json.loads(
        TARGETS["gptqmodel"](plan_of(small, chosen | {"model.layers.0.mlp.up_proj": "w4g64"}), small, "gptq")
    )
    assert mixed["group_size"] == 64
    assert "act_group_aware" not in mixed
    assert all(override["act_group_aware"] is False for override in mixed["dynamic"].values())
    whole = json.loads(TARGETS["gptqmodel"](plan_of(small, chosen), small, "gptaq"))
    assert whole["act_group_aware"] is False
    assert "act_group_aware" not in json.loads(TARGETS["gptqmodel"](plan_of(small, chosen), small, "rtn"))


def test_autoround_would_leave_odd_shapes_alone() -> None:
    odd = decoder_of(
        AutoConfig.for_model(
            "llama", hidden_size=64, intermediate_size=80, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
        )
    )
    with pytest.raises(
        UserError, match=r"mlp.gate_proj and 1 more: w3g16: AutoRound leaves 80 x 64 matrices as they are"
    ):
        TARGETS["autoround"](plan_of(odd, "w3g16"), odd, "rtn")


def test_the_command_line_names_every_target() -> None:
    assert [target.value for target in Target] == list(TARGETS)
