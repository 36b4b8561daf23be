"""What runtimes refuse, and the nearest plan that they load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import update_runtimes
from typer.testing import CliRunner

from mixprec.checkpoint.check import Target, Verdict, check, differences, require
from mixprec.checkpoint.facts import FACTS, RUNTIMES
from mixprec.checkpoint.names import FORMAT_NAMES
from mixprec.checkpoint.runtimes import DEVICES, RuntimeName
from mixprec.cli import app
from mixprec.core.errors import UserError
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import Plan, load_plan, save_plan

R1 = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
CONFIG = load_config(R1)
INVENTORY = decoder_of(CONFIG)
VLLM, CPU = Target("vllm", "compressed-tensors"), Target("vllm", "compressed-tensors", device="cpu")
UP, GATE = "model.layers.31.mlp.up_proj", "model.layers.31.mlp.gate_proj"


def planned(default: str, tie: str | None = None, method: str = "rtn", **rules: str) -> Plan:
    said = [{"match": match, "format": format} for match, format in rules.items()]
    spec = PlanSpec.model_validate({"default": default, "tie": tie, "rules": said, "method": method})
    return build_plan(spec, INVENTORY, R1, "rtn")


def verdict(plan: Plan, target: Target) -> Verdict:
    return check(plan, INVENTORY, CONFIG, target)


def changes(plan: Plan, target: Target) -> dict[str, str]:
    """Address -> format in the nearest plan, which loads and is its own nearest."""
    found = verdict(plan, target)
    assert not found.loads
    assert found.nearest is not None
    assert verdict(found.nearest, target).loads
    return {address: str(format) for address, format in differences(plan, found.nearest).items()}


def test_only_32_up_is_refused_and_takes_its_gate_along() -> None:
    plan = planned("keep", **{"32_up": "w3g128"})
    found = verdict(plan, VLLM)
    assert set(found.refused) == {UP, GATE}
    assert "gate/up are one matrix there, and have keep and w3g128" in found.refused[UP]
    assert changes(plan, VLLM) == {GATE: "w3g128"}
    with pytest.raises(UserError, match=r"dense loads as it is; packed, the nearest .* has .*gate_proj in w3g128"):
        require(plan, INVENTORY, CONFIG, VLLM)


def test_a_protected_up_takes_its_gate_along() -> None:
    assert changes(planned("w3g128", **{"32_up": "keep"}), VLLM) == {GATE: "keep"}


@pytest.mark.parametrize(
    ("plan", "target"),
    [
        (planned("w3g128", last_mlp="keep"), VLLM),
        (planned("w4g128", last_mlp="keep"), CPU),
        (planned("w4g128_asym"), CPU),
        (planned("keep", **{"32_up": "w3g128"}), Target("vllm", "dense")),
        (planned("keep", **{"32_up": "w3g128"}), Target("transformers", "compressed-tensors")),
        (planned("w4g128", **{"32_mlp": "w8g64"}), Target("vllm", "gptq")),
        (planned("w3g128"), Target("vllm", "gptq", "0.11")),
        (planned("w3g128"), Target("transformers", "gptq")),
        (planned("w3", **{"32_mlp": "keep"}), Target("transformers", "gptq", device="cpu")),
        (planned("w4g128", **{"32_mlp": "w8g64"}), Target("sglang", "compressed-tensors")),
        (planned("w4g128_asym", last_mlp="keep"), Target("sglang", "awq")),
        (planned("w4g128_asym", last_mlp="keep"), Target("vllm", "awq")),
        (planned("w4g128_asym", last_mlp="keep"), Target("vllm", "awq", device="cpu")),
        (planned("w4g128_asym", last_mlp="keep"), Target("transformers", "awq", device="cpu")),
        (planned("w4g128_asym", **{"32_up": "keep"}), Target("mlx", "awq")),
        (planned("w3g64", **{"32_up": "w6g32_asym", "1_q": "w5g128_affine", "2_q": "keep"}), Target("mlx", "mlx")),
        (planned("w3g64"), Target("mlx", "mlx", device="cpu")),
        (planned("w4g128", **{"32_up": "keep"}), Target("mlx", "dense")),
        (planned("w3", **{"32_mlp": "keep"}), Target("vllm", "gguf", "0.32")),
    ],
)
def test_what_loads(plan: Plan, target: Target) -> None:
    assert verdict(plan, target).loads
    require(plan, INVENTORY, CONFIG, target)


@pytest.mark.parametrize(
    ("plan", "target", "reason", "becomes"),
    [
        (planned("w3g128"), CPU, "w3g128: it loads 4 bits symmetric", {"w4g128"}),
        (planned("w3g128"), Target("vllm", "gptq"), "it loads 4, 8 bits symmetric", {"w4g128"}),
        (planned("w4g128_asym"), Target("vllm", "gptq"), "nothing asymmetric", {"w4g128"}),
        (planned("w4g16"), Target("vllm", "gptq"), "groups of whole rows, 32, 64, 128", {"w4g32"}),
        (planned("w4g256"), Target("vllm", "gptq"), "groups of whole rows, 32, 64, 128", {"w4g128"}),
        (planned("w4g128_asym"), Target("transformers", "compressed-tensors"), "nothing asymmetric", {"w4g128"}),
        (planned("w4g128", **{"32_mlp": "w8g64"}), Target("transformers", "gptq"), "only one format", {"w4g128"}),
        (planned("w4"), Target("transformers", "gptq", device="cpu"), "groups of 32, 64, 128, 256", {"w4g128"}),
        (planned("any4g128", method="anyk"), VLLM, "code books are not packed", {"w4g128"}),
        (planned("q3_k", method="ggml"), VLLM, "a type of llama.cpp's", {"w3g32"}),
        (planned("w5g96"), VLLM, "groups of 96 do not divide 4096 columns", {"w5g64"}),
        (planned("w3g128"), Target("vllm", "compressed-tensors", "0.31"), "4, 8 bits symmetric", {"w4g128"}),
        (planned("w3g128"), Target("sglang", "compressed-tensors"), "4, 8 bits symmetric", {"w4g128"}),
        (planned("w8g128_asym"), Target("sglang", "compressed-tensors"), "4 bits asymmetric", {"w8g128"}),
        (planned("w4g128"), Target("vllm", "awq"), "take w4g128_asym", {"w4g128_asym"}),
        (planned("w4g128_asym", **{"1_o": "w4g64_asym"}), Target("vllm", "awq"), "one group size", {"w4g128_asym"}),
        (planned("w4_asym"), Target("transformers", "awq", device="cpu"), "groups of 32, 64, 128", {"w4g128_asym"}),
        (planned("w4g256_asym"), Target("vllm", "awq"), "groups of whole rows, 32, 64, 128", {"w4g128_asym"}),
        (planned("w4g128_asym", **{"32_up": "keep"}), Target("sglang", "awq"), "gate/up are one matrix", {"keep"}),
        (planned("w4g16_asym"), Target("mlx", "awq"), "groups of 32, 64, 128", {"w4g32_asym"}),
        (planned("w7g128"), Target("mlx", "mlx"), "MLX has 2, 3, 4, 5, 6, 8 bits", {"w8g128"}),
        (planned("w4g256"), Target("mlx", "mlx"), "MLX has groups of 32, 64, 128", {"w4g128"}),
        (planned("w4g128_affine"), VLLM, "only MLX's layout has offsets of 16 bits", {"w4g128"}),
    ],
)
def test_what_is_refused_and_what_it_becomes(plan: Plan, target: Target, reason: str, becomes: set[str]) -> None:
    assert any(reason in why for why in verdict(plan, target).refused.values())
    assert set(changes(plan, target).values()) == becomes


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (Target("llama.cpp", "gptq"), "GGUF files only"),
        (Target("llama.cpp", "dense"), "GGUF files only"),
        (Target("vllm", "compressed-tensors", device="volta"), "compute capability 7.5, volta has 7.0"),
        (Target("vllm", "gguf", device="cpu"), "reads GGUF on GPUs alone"),
        (Target("vllm", "compressed-tensors", device="apple"), "nothing is known of vLLM and compressed-tensors there"),
        (Target("sglang", "compressed-tensors", device="turing"), "compute capability 8.0, turing has 7.5"),
        (Target("sglang", "mlx"), "on Apple's GPUs alone"),
        (Target("mlx", "gptq"), "mlx-lm stops at g_idx"),
        (Target("mlx", "compressed-tensors"), "write mlx"),
        (Target("transformers", "mlx"), "reads no files of MLX"),
    ],
)
def test_what_never_loads(target: Target, reason: str) -> None:
    found = verdict(planned("w4g128"), target)
    assert reason in found.whole
    assert not found.loads


@pytest.mark.parametrize(
    "target", [Target("tensorrt", "gptq"), Target("vllm", "gptq", "new"), Target("vllm", "gptq", device="tpu")]
)
def test_unknown_targets(target: Target) -> None:
    with pytest.raises(UserError, match=r"is not one of|is no version"):
        verdict(planned("w4g128"), target)


def test_a_plugin_that_reads_gguf() -> None:
    target = Target("vllm", "gguf")
    assert verdict(planned("w4g128"), target).needs == "vllm-gguf-plugin"
    assert not verdict(planned("w4g128"), target._replace(version="0.31")).needs


def test_the_facts_are_of_known_things_and_say_where_they_are_from() -> None:
    assert tuple(RUNTIMES) == get_args(RuntimeName)
    places = [(fact.runtime, fact.since, fact.format, where) for fact in FACTS for where in fact.where]
    assert len(places) == len(set(places))
    for fact in FACTS:
        assert fact.source and fact.format in FORMAT_NAMES and fact.runtime in RUNTIMES
    for name, runtime in RUNTIMES.items():
        assert runtime.format in FORMAT_NAMES and runtime.device in DEVICES
        assert verdict(planned("keep"), Target(name, runtime.format)).loads


def test_the_docs_show_the_facts() -> None:
    assert update_runtimes.PAGE.read_text() == update_runtimes.page(), "run: python scripts/update_runtimes.py"
    assert len(update_runtimes.table().splitlines()) == len(FACTS) + 2


def test_pruned_plans_have_no_nearest_packed_one() -> None:
    spec = PlanSpec.model_validate({"default": "keep", "sparsity": 0.5, "method": "magnitude"})
    plan = build_plan(spec, INVENTORY, R1, "rtn")
    found = verdict(plan, VLLM)
    assert found.nearest is None
    assert "pruned modules are written dense" in next(iter(found.refused.values()))


def test_tied_rules_mean_whole_groups() -> None:
    assert planned("keep", "fused", **{"32_up": "w3g128"}).changed == [GATE, UP]
    attention = planned("keep", "fused", **{"1_k": "w3g128"}).changed
    assert attention == [f"model.layers.0.self_attn.{kind}_proj" for kind in "qkv"]
    assert planned("keep", "fused", **{"1_o": "w3g128", "1_down": "w4"}).changed == [
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.mlp.down_proj",
    ]


def test_tied_rules_that_fight_over_a_group() -> None:
    with pytest.raises(UserError, match="make the selectors disjoint"):
        planned("keep", "fused", **{"1_q": "w3g128", "1_k": "w4g128"})


def test_tied_draws_and_rankings_take_groups() -> None:
    scores = {"backtracking": {module.address: 1.0 for module in INVENTORY.linears} | {UP: 0.1}}
    for match, expected in (
        ({"least_important": "*_*", "count": 1}, {"model.layers.0.self_attn.o_proj"}),  # alone in its group
        ({"most_important": "*_mlp", "count": 1}, {"model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"}),
        ({"least_important": "*_up", "count": 1}, {GATE, UP}),
    ):
        spec = PlanSpec.model_validate({"default": "keep", "tie": "fused", "rules": [{"match": match, "format": "w3"}]})
        assert set(build_plan(spec, INVENTORY, R1, "rtn", scores).changed) == expected
    match = {"random": "last_up", "seed": 3}
    spec = PlanSpec.model_validate({"default": "keep", "tie": "fused", "rules": [{"match": match, "format": "w3"}]})
    drawn = build_plan(spec, INVENTORY, R1, "rtn").changed
    assert [address.rpartition(".")[2] for address in drawn] == ["gate_proj", "up_proj"]
    assert not set(drawn) & {UP, GATE}
    assert verdict(build_plan(spec, INVENTORY, R1, "rtn"), VLLM).loads


def test_a_budget_has_a_tie_of_its_own() -> None:
    with pytest.raises(ValueError, match="a budget has a tie of its own"):
        PlanSpec.model_validate({"tie": "fused", "budget": {"candidates": ["w3", "w4"], "code_bits": 3.5}})


def test_the_verb_writes_the_nearest_plan(tmp_path: Path) -> None:
    save_plan(tmp_path / "plan.json", planned("keep", **{"32_up": "w3g128"}))
    arguments = ["check", str(tmp_path / "plan.json"), "--runtime", "vllm", "--out", str(tmp_path / "loads.json")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert "one matrix there" in " ".join(result.output.split())
    nearest = load_plan(tmp_path / "loads.json", INVENTORY)
    assert nearest.changed == [GATE, UP]
    again = CliRunner().invoke(app, ["check", str(tmp_path / "loads.json"), "--runtime", "vllm"])
    assert again.exit_code == 0, again.output
    assert "loads in vllm on ampere, compressed-tensors" in again.output


def test_a_recipe_that_names_a_runtime_is_checked_before_any_work(tmp_path: Path, tiny_checkpoint: Path) -> None:
    from mixprec import recipe
    from mixprec.pipeline import Run, explain

    parts = {
        "model": {"id": str(tiny_checkpoint)},
        "plan": {"default": "keep", "rules": [{"match": "2_up", "format": "w3g16"}]},
        "checkpoint": {"format": "compressed-tensors", "runtime": "vllm", "version": 0.32},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(parts))
    chosen = recipe.load(path)
    for attempt in (
        lambda: Run(chosen, "", "r", tmp_path / "run", None).run(),
        lambda: explain(chosen, None),
        lambda: CliRunner().invoke(app, ["plan", str(path)], catch_exceptions=False),
    ):
        with pytest.raises(
            UserError, match=r"variant compressed: checkpoint.runtime: vllm 0.32 on ampere.*\n.*gate/up"
        ):
            attempt()
    assert not (tmp_path / "run").exists()
