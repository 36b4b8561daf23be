"""Plans in llama.cpp's types: what rules give to rows that a type does not fit, what is counted, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from maps import linear
from tiny import SHAPE, build
from transformers import AutoConfig, PretrainedConfig

from mixprec.checkpoint.formats import FORMATS
from mixprec.contrib.export import llamacpp
from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder
from mixprec.models.maps import decoder_of
from mixprec.numerics.formats import GGML, GgmlFormat, parse_format
from mixprec.plan import bits
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import ModulePlan, Plan, load_plan, save_plan


@pytest.fixture(scope="module")
def config() -> PretrainedConfig:
    shape = {**SHAPE, "hidden_size": 256, "intermediate_size": 96, "vocab_size": 100}
    return AutoConfig.for_model("llama", **shape)


@pytest.fixture(scope="module")
def inventory(config: PretrainedConfig) -> Decoder:
    """Rows of 256 weights, of 96 for down."""
    return decoder_of(config)


def planned(inventory: Decoder, **spec: object) -> Plan:
    return build_plan(PlanSpec.model_validate(spec), inventory, "tiny", "ggml")


def test_rules_fall_back_as_llama_cpp_and_say_so(inventory: Decoder) -> None:
    plan = planned(inventory, default="q2_k", rules=[{"match": "last_down", "format": "q6_k"}])
    assert str(plan.modules["model.layers.0.mlp.up_proj"].format) == "q2_k"
    first, last = (plan.modules[f"model.layers.{layer}.mlp.down_proj"] for layer in (0, 1))
    assert str(first.format) == "iq4_nl"
    assert first.why == "default; q2_k wants rows of a multiple of 256, these have 96"
    assert str(last.format) == "q8_0"
    assert last.why == "rules[0]: last_down; q6_k wants rows of a multiple of 256, these have 96"


def test_a_plan_by_hand_is_not_changed(inventory: Decoder, tmp_path: Path) -> None:
    plan = planned(inventory, default="q2_k")
    wrong = plan.modules | {"model.layers.0.mlp.down_proj": ModulePlan(format=GgmlFormat("q2_k"))}
    save_plan(tmp_path / "plan.json", plan.model_copy(update={"modules": wrong}))
    expected = (
        "plan.json: modules: model.layers.0.mlp.down_proj: q2_k wants rows of a multiple of 256 weights, "
        "these have 96; the nearest that fit: mxfp4, iq4_nl, q4_0, keep"
    )
    with pytest.raises(UserError, match=expected):
        load_plan(tmp_path / "plan.json", inventory)
    save_plan(tmp_path / "plan.json", plan)
    assert load_plan(tmp_path / "plan.json", inventory) == plan


def test_formats_and_methods_that_do_not_go_together(inventory: Decoder) -> None:
    with pytest.raises(UserError, match="q4_k and method rtn don't go together"):
        planned(inventory, default="q4_k", method="rtn")
    with pytest.raises(UserError, match="w3g64 and method ggml don't go together"):
        planned(inventory, default="w3g64")
    with pytest.raises(UserError, match=r"format 'q4_z' is not known.*q4_k, iq2_xxs"):
        parse_format("q4_z")


@pytest.mark.parametrize("name", GGML)
def test_bits_are_those_of_the_blocks(name: str) -> None:
    module = linear(1, "q", 24, 512)
    found = bits.storage(module, GgmlFormat(name))
    layout = GGML[name]
    assert found.bytes == 24 * 512 // layout.block * layout.bytes == 24 * GgmlFormat(name).row_bytes(512)
    assert found.effective_bits == GgmlFormat(name).effective_bits
    assert found.code_bits == layout.code_bits / layout.block


def test_llama_quantize_gets_the_very_types(inventory: Decoder) -> None:
    rules = [{"match": "last_mlp", "format": "keep"}, {"match": "1_attn", "format": "w8g32", "method": "rtn"}]
    lines = llamacpp.export(planned(inventory, default="q2_k", rules=rules), inventory, "ggml").splitlines()
    found = {line.rpartition("=")[0]: line.rpartition("=")[2] for line in lines}
    assert set(found.values()) == {"q2_k", "iq4_nl", "f16", "q8_0"}
    assert found[r"^blk\.0\.ffn_down\.weight$"] == "iq4_nl"


def test_a_model_that_is_too_narrow_is_kept() -> None:
    loaded = build(hidden_size=40, intermediate_size=48, head_dim=10)
    plan = planned(decoder_of(loaded.model.config), default="q2_k")
    assert {str(module.format) for module in plan.modules.values()} == {"keep"}
    assert "q2_k wants rows of a multiple of 256, these have 40" in plan.modules["model.layers.0.mlp.up_proj"].why


#: Types that no importance matrix is needed for.
FREE = [name for name in GGML if not GgmlFormat(name).needs_importance]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(FREE), min_size=2, max_size=5, unique=True), st.floats(0, 1), st.integers(0, 3))
def test_a_file_with_types_that_fall_back_keeps_to_its_size(
    config: PretrainedConfig, inventory: Decoder, types: list[str], share: float, seed: int
) -> None:
    def files(plan: Plan) -> int:
        return FORMATS["gguf"].bytes(plan, inventory, config)

    ends = sorted(files(planned(inventory, default=each)) for each in types)
    wanted = int(ends[0] + share * (ends[-1] - ends[0]))
    budget = {"file_bytes": wanted, "candidates": types, "allocation": "random", "seed": seed}
    spec = PlanSpec.model_validate({"budget": budget})
    plan = build_plan(spec, inventory, "tiny", "ggml", file_size=files)
    assert files(plan) <= wanted
    assert str(plan.formats["model.layers.0.mlp.down_proj"]) not in ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
