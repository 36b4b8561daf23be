"""Embedding and head in plans: named by rules, one line where they are tied, counted in bytes and not in bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder
from mixprec.models.maps import decoder_of
from mixprec.numerics.formats import Format, parse_format
from mixprec.plan.bits import account
from mixprec.plan.budget import budget_plan
from mixprec.plan.budgetspec import BudgetSpec
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import ModulePlan, Plan, load_plan, save_plan
from mixprec.plan.sensitivity import Sensitivity

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96}


def decoder(tied: bool, **sizes: int) -> Decoder:
    return decoder_of({"model_type": "llama", "tie_word_embeddings": tied, **SIZES, **sizes})


def plan_of(inventory: Decoder, *rules: tuple[Any, str], default: str = "w4g16") -> Plan:
    spec = {"default": default, "rules": [{"match": match, "format": format} for match, format in rules]}
    return build_plan(PlanSpec.model_validate(spec), inventory, "tiny", "rtn")


@pytest.mark.parametrize("tied", [True, False])
def test_what_no_rule_names_stays_out_of_the_plan(tied: bool) -> None:
    inventory = decoder(tied)
    for plan in (plan_of(inventory), plan_of(inventory, ("*_*", "w3g16")), plan_of(inventory, ("model.*", "w3g16"))):
        assert list(plan.modules) == [module.address for module in inventory.linears]


@pytest.mark.parametrize("match", ["embedding", EMBEDDING, ["last_up", "embedding"]])
def test_a_rule_names_the_embedding(match: Any) -> None:
    inventory = decoder(False)
    plan = plan_of(inventory, (match, "w8g16"))
    assert next(iter(plan.modules)) == EMBEDDING
    assert plan.formats[EMBEDDING] == Format(8, 16)
    assert HEAD not in plan.modules


def test_a_head_of_its_own_comes_last() -> None:
    plan = plan_of(decoder(False), ("head", "w6g16"), ("embedding", "w8g16"))
    assert list(plan.modules)[-1] == HEAD
    assert [str(plan.formats[address]) for address in (EMBEDDING, HEAD)] == ["w8g16", "w6g16"]


@pytest.mark.parametrize("match", ["head", HEAD])
def test_a_tied_head_is_the_embedding(match: str) -> None:
    plan = plan_of(decoder(True), (match, "w8g16"))
    assert plan.formats[EMBEDDING] == Format(8, 16)
    assert HEAD not in plan.modules


def test_two_formats_for_a_tied_matrix_are_refused_by_both_names() -> None:
    with pytest.raises(UserError, match=r"embed_tokens.*\(embedding\) says w8g16.*\(head\) says w6g16"):
        plan_of(decoder(True), ("embedding", "w8g16"), ("head", "w6g16"))
    assert plan_of(decoder(True), ("embedding", "w8g16"), ("head", "w8g16")).formats[EMBEDDING] == Format(8, 16)


def test_a_word_that_is_wrong_is_told_the_right_ones() -> None:
    with pytest.raises(UserError, match=r"'embeding' matches no module.*embedding, head"):
        plan_of(decoder(True), ("embeding", "w8g16"))


@pytest.mark.parametrize("match", [{"random": "embedding", "seed": 0}, {"least_important": "head"}])
def test_draws_and_rankings_are_of_the_blocks(match: dict[str, Any]) -> None:
    spec = PlanSpec.model_validate({"default": "w4g16", "rules": [{"match": match, "format": "keep"}]})
    inventory = decoder(False)
    importance = {"backtracking": {module.address: 1.0 for module in inventory.linears}}
    with pytest.raises(UserError, match="matches no module"):
        build_plan(spec, inventory, "tiny", "rtn", importance)


def test_a_plan_is_saved_and_read(tmp_path: Path) -> None:
    plan = plan_of(decoder(False), ("embedding", "w8g16"), ("head", "w6g16"))
    save_plan(tmp_path / "plan.json", plan)
    assert load_plan(tmp_path / "plan.json", decoder(False)) == plan


def test_a_line_for_a_tied_head_is_refused_with_the_name_to_use(tmp_path: Path) -> None:
    plan = plan_of(decoder(True), ("embedding", "w8g16"))
    both = plan.model_copy(update={"modules": plan.modules | {HEAD: ModulePlan(format=Format(6, 16))}})
    save_plan(tmp_path / "plan.json", both)
    with pytest.raises(UserError, match=r"lm_head is model.embed_tokens in this model"):
        load_plan(tmp_path / "plan.json", decoder(True))


def test_a_file_without_them_reads_and_counts_as_before(tmp_path: Path) -> None:
    inventory = decoder(True)
    modules = {module.address: {"format": "w4g16", "why": "default"} for module in inventory.linears}
    text = json.dumps({"schema_version": 1, "model": "tiny", "method": "rtn", "modules": modules})
    (tmp_path / "plan.json").write_text(text)
    plan = load_plan(tmp_path / "plan.json", inventory)
    assert plan.model_dump(mode="json", exclude_none=True) == json.loads(text)
    other = 96 * 32 + 5 * 32
    weights = sum(module.weights for module in inventory.linears)
    assert account(plan, inventory).packed_bytes == weights // 2 + weights // 16 * 2 + 2 * other


@given(
    tied=st.booleans(),
    vocabulary=st.integers(1, 200),
    embedding=st.sampled_from([None, "keep", "w2g16", "w3g8_asym", "w8", "q8_0", "any4g16"]),
    head=st.sampled_from([None, "keep", "w5g16", "w4g8_asym"]),
)
def test_bytes_count_all_and_bits_the_blocks(
    tied: bool, vocabulary: int, embedding: str | None, head: str | None
) -> None:
    inventory = decoder(tied, vocab_size=vocabulary)
    plain = plan_of(inventory)
    said = {EMBEDDING: embedding, HEAD: None if tied else head}
    methods = {"q8_0": "ggml", "any4g16": "anyk"}
    lines = {a: ModulePlan(format=parse_format(f), method=methods.get(f)) for a, f in said.items() if f}
    plan = plain.model_copy(update={"modules": plain.modules | lines})
    plan = Plan.model_validate(plan.model_dump(mode="json"))
    before, after = account(plain, inventory), account(plan, inventory)
    assert (before.code_bits, before.effective_bits) == (after.code_bits, after.effective_bits)
    more = sum(after.modules[address].bytes - vocabulary * 32 * 2 for address in lines)
    assert after.packed_bytes == before.packed_bytes + more
    assert after.dense_bytes == before.dense_bytes
    assert sum(total.modules for total in after.formats.values()) == len(inventory.linears) + len(lines)


def test_their_totals_stand_apart() -> None:
    found = account(plan_of(decoder(False), ("embedding", "w4g16"), ("head", "keep")), decoder(False))
    assert {name: total.modules for name, total in found.formats.items()} == {
        "w4g16, embedding": 1, "w4g16": 14, "keep, head": 1,
    }  # fmt: skip


def test_no_name_of_a_matrix_says_more_than_one() -> None:
    for tied in (True, False):
        inventory = decoder(tied)
        assert len({linear.address for linear in inventory.matrices}) == len(inventory.matrices)
        assert all(inventory[linear.address] is linear for linear in inventory.matrices)
        assert {linear.weight_name for linear in inventory.outside} <= set(inventory.shapes)
        assert [linear.label for linear in inventory.outside] == (["embedding"] if tied else ["embedding", "head"])
        assert replace(inventory).planned([HEAD]) == ([] if tied else [inventory.outside[1]])


def budget(inventory: Decoder, scores: dict[str, dict[str, float]], **keys: Any) -> Plan:
    table = Sensitivity(model="tiny", identity="a" * 64, scorer="measured", method="rtn", scores=scores)
    spec = BudgetSpec.model_validate({"candidates": ["w2g16", "w4g16", "w8g16", "keep"], **keys})
    return budget_plan(spec, inventory, "tiny", "rtn", table)


def scores_of(inventory: Decoder, embedding: float) -> dict[str, dict[str, float]]:
    found = {}
    for linear in inventory.matrices:
        scale = embedding if linear.kind == "embedding" else 1.0
        found[linear.address] = {f"w{bits}g16": scale * linear.weights * 4.0**-bits for bits in (2, 4, 8)}
    return found


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("embedding", [0.01, 100.0])
def test_bytes_are_spent_where_the_scores_say(tied: bool, embedding: float) -> None:
    inventory = decoder(tied)
    outside = [linear.kind for linear in inventory.outside]
    size = account(plan_of(inventory, *((name, "w4g16") for name in outside)), inventory).packed_bytes
    plan = budget(inventory, scores_of(inventory, embedding), bytes=size, outside=outside)
    found = account(plan, inventory)
    assert list(plan.modules) == [linear.address for linear in inventory.matrices]
    assert found.packed_bytes <= size
    assert (found.modules[EMBEDDING].code_bits > 4) == (embedding > 1)


def test_a_pin_needs_no_scores_and_counts_in_bytes() -> None:
    inventory = decoder(True)
    scores = {linear.address: row for linear in inventory.linears for row in [scores_of(inventory, 1)[linear.address]]}
    size = account(plan_of(inventory, ("embedding", "keep")), inventory).packed_bytes
    loose = budget(inventory, scores, bytes=size, pin={"embedding": "w2g16"})
    tight = budget(inventory, scores, bytes=size, pin={"head": "keep"})
    assert [str(plan.formats[EMBEDDING]) for plan in (loose, tight)] == ["w2g16", "keep"]
    assert loose.modules[EMBEDDING].why == "pinned"
    assert account(loose, inventory).effective_bits > account(tight, inventory).effective_bits
    bits = [budget(inventory, scores, effective_bits=5, pin=pin) for pin in ({}, {"embedding": "w2g16"})]
    assert {a: f for a, f in bits[1].formats.items() if a != EMBEDDING} == bits[0].formats


@pytest.mark.parametrize("measure", ["effective_bits", "code_bits", "sparsity"])
def test_sizes_of_the_blocks_allocate_nothing_outside(measure: str) -> None:
    with pytest.raises(ValidationError, match="counts the blocks' linears alone; give bytes or file_bytes"):
        BudgetSpec.model_validate({measure: 0.5, "candidates": ["0.5", "keep"], "outside": ["embedding"]})


@pytest.mark.parametrize("allocation", ["uniform", "random", "last_layers", "inverse", "llama_cpp"])
def test_controls_spend_the_same_bytes(allocation: str) -> None:
    inventory = decoder(False)
    size = account(plan_of(inventory, ("embedding", "w4g16"), ("head", "w8g16")), inventory).packed_bytes
    keys = {"candidates": [f"w{bits}g16" for bits in (2, 3, 4, 5, 6)], "allocation": allocation}
    scores = {a: row | {"w3g16": 1.0, "w5g16": 0.1, "w6g16": 0.05} for a, row in scores_of(inventory, 1).items()}
    plan = budget(inventory, scores, bytes=size, outside=["embedding", "head"], **keys)
    assert account(plan, inventory).packed_bytes <= size
    if allocation == "llama_cpp":
        assert str(plan.formats[HEAD]) == "w6g16"


def test_stamps_of_budgets_without_them_stay() -> None:
    spec = BudgetSpec.model_validate({"bytes": 5, "candidates": ["w2g16", "keep"]})
    assert "outside" not in spec.model_dump(mode="json")
    with pytest.raises(ValidationError, match="exchange measures plans of the blocks"):
        BudgetSpec.model_validate(
            {"bytes": 5, "candidates": ["w2g16", "keep"], "outside": ["head"], "exchange": {"samples": 2}}
        )
