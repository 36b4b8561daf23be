"""llama.cpp's mixtures: the types that its quantizer gives, and mixtures as controls of a budget."""

from __future__ import annotations

from collections import Counter

import pytest
from transformers import LlamaConfig

from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder
from mixprec.models.maps import decoder_of
from mixprec.plan import bits, mixtures
from mixprec.plan.budget import budget_plan
from mixprec.plan.budgetspec import BudgetSpec
from mixprec.plan.schema import Plan

CANDIDATES = ("w2g16", "w3g16", "w4g16", "w5g16", "w6g16")


def decoder(layers: int, heads: int = 4, shared: int = 1) -> Decoder:
    return decoder_of(
        LlamaConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // shared,
            vocab_size=64,
        )
    )


def spend(inventory: Decoder, **keys: object) -> Plan:
    spec = BudgetSpec.model_validate({"candidates": CANDIDATES, "allocation": "llama_cpp", **keys})
    return budget_plan(spec, inventory, "tiny", "gptq")


def row(mixture: str, inventory: Decoder, kind: str) -> str:
    """The bits of one kind of module through the layers, a digit each."""
    found = (m for m in inventory.linears if m.kind == kind)
    return "".join(str(mixtures.bits_of(mixture, module, inventory)) for module in found)


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        ("Q2_K_S", {"v": "2" * 16, "down": "4422222222222222", "o": "2" * 16, "q": "2" * 16}),
        ("Q2_K", {"v": "3" * 16, "down": "3" * 16, "o": "3" * 16, "up": "2" * 16}),
        ("Q3_K_S", {"v": "3" * 16, "down": "3" * 16, "o": "3" * 16, "gate": "3" * 16}),
        ("Q3_K_M", {"v": "5544444444444444", "down": "5444444444444444", "o": "4" * 16, "k": "3" * 16}),
        ("Q3_K_L", {"v": "5" * 16, "down": "5" * 16, "o": "5" * 16, "up": "3" * 16}),
        ("Q4_K_S", {"v": "5555444444444444", "down": "5544444444444444", "o": "4" * 16, "q": "4" * 16}),
        ("Q4_K_M", {"v": "6644644644644666", "down": "6644644644644666", "o": "4" * 16, "q": "4" * 16}),
        ("Q5_K_M", {"v": "6655655655655666", "down": "6655655655655666", "o": "5" * 16, "q": "5" * 16}),
        ("Q6_K", {"v": "6" * 16, "down": "6" * 16, "o": "6" * 16, "q": "6" * 16}),
    ],
)
def test_sixteen_layers_get_the_types_that_the_quantizer_gives(mixture: str, expected: dict[str, str]) -> None:
    inventory = decoder(16)
    assert {kind: row(mixture, inventory, kind) for kind in expected} == expected


def test_a_v_that_four_heads_share_gets_more() -> None:
    assert row("Q2_K", decoder(2, shared=4), "v") == "44"
    assert row("Q2_K_S", decoder(2, shared=4), "v") == "44"
    assert set(row("Q3_K_S", decoder(80, shared=4), "v")) == {"5"}  # the 70B models
    assert set(row("Q3_K_S", decoder(80), "v")) == {"3"}


def test_the_largest_mixture_within_the_budget(tiny: Decoder) -> None:
    formats = Counter(str(each.format) for each in spend(tiny, effective_bits=4.0).modules.values())
    assert formats == {"w3g16": len(tiny.linears)}  # Q3_K_S; Q3_K_M takes more
    plan = spend(tiny, effective_bits=4.99)
    assert {str(plan.modules[m.address].format) for m in tiny.linears if m.kind == "o"} == {"w5g16"}  # Q3_K_L
    for size in (3.2, 3.9, 4.4, 5.2, 6.5, 6.9):
        assert bits.account(spend(tiny, effective_bits=size), tiny).effective_bits <= size


def test_tied_modules_get_the_most_of_their_mixture_and_pinned_ones_their_pin(tiny: Decoder) -> None:
    plan = spend(tiny, effective_bits=4.99, tie="fused", pin={"last_down": "w2g16"})
    for layer in range(1, tiny.layers + 1):
        found = {m.kind: str(plan.modules[m.address].format) for m in tiny.linears if m.layer == layer}
        assert found["q"] == found["k"] == found["v"]
        assert found["gate"] == found["up"]
        assert found["down"] == "w2g16" or layer < tiny.layers


def test_mixtures_that_the_candidates_can_not_make_are_passed_over(tiny: Decoder) -> None:
    plan = spend(tiny, effective_bits=5.5, candidates=["w3g16", "w4g16", "keep"])
    assert {str(each.format) for each in plan.modules.values()} == {"w3g16"}
    with pytest.raises(UserError, match=r"none of Q2_K_S, .* fits effective_bits 9\.5 and can be made of these"):
        spend(tiny, effective_bits=9.5, candidates=["w7g16", "w8g16", "keep"])
