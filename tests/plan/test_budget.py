"""Budgets on a model: sizes as bits.py counts them, ties, pins, controls, and what can't be asked for."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from maps import address, decoder, linear
from pydantic import ValidationError

from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder
from mixprec.plan import bits
from mixprec.plan.budget import budget_plan, budget_problem, importance_table
from mixprec.plan.budgetsize import size_of
from mixprec.plan.budgetspec import BudgetSpec
from mixprec.plan.rules import PlanSpec, build_plan, needs_importance, tables_wanted
from mixprec.plan.schema import Plan
from mixprec.plan.sensitivity import Sensitivity, parse_choice

CANDIDATES = ("w2g16", "w3g16", "w4g16", "keep")


def table(inventory: Decoder, texts: tuple[str, ...] = CANDIDATES, **changes: Any) -> Sensitivity:
    """Damage that falls with the bits; later modules suffer more per weight."""
    scores = {
        module.address: {
            text: (index + 1) * module.weights * 4.0 ** -parse_choice(text).format.bits  # type: ignore[union-attr]
            for text in texts
            if text != "keep"
        }
        for index, module in enumerate(inventory.linears)
    }
    data = {"model": "tiny", "identity": "a" * 64, "scorer": "fisher", "method": "gptq", "scores": scores}
    return Sensitivity.model_validate(data | changes)


def test_formats_with_a_method_of_their_own_go_by_it(tiny: Decoder) -> None:
    """Beside those that the plan's method makes: llama.cpp's types and learned code books."""
    texts = ("w3g16", "iq4_nl", "any4g16", "w5g16")
    plan = spend(tiny, table(tiny, texts), effective_bits=4.7, candidates=list(texts))
    made = {str(line.format): line.method for line in plan.modules.values()}
    assert made == {text: {"iq4_nl": "ggml", "any4g16": "anyk"}.get(text) for text in made}
    assert "w3g16" in made and made.keys() & {"iq4_nl", "any4g16"}
    assert plan.methods == {line.method or "gptq" for line in plan.modules.values()}


def spend(inventory: Decoder, scores: Sensitivity | None = None, **keys: Any) -> Plan:
    spec = BudgetSpec.model_validate({"candidates": CANDIDATES, **keys})
    return budget_plan(spec, inventory, "tiny", "gptq", scores or table(inventory))


def damage(plan: Plan, scores: Sensitivity) -> float:
    return math.fsum(scores.damage(a, parse_choice(str(found.format))) for a, found in plan.modules.items())


@pytest.mark.parametrize("measure", ["effective_bits", "code_bits", "bytes"])
def test_a_plan_takes_what_its_account_says(tiny: Decoder, measure: str) -> None:
    size = 20_000 if measure == "bytes" else 4.3
    account = bits.account(spend(tiny, **{measure: size}), tiny)
    found = {"effective_bits": account.effective_bits, "code_bits": account.code_bits, "bytes": account.packed_bytes}
    assert 0.92 * size < found[measure] <= size


def test_a_budget_of_exactly_one_format_is_that_format(tiny: Decoder) -> None:
    scores = table(tiny, ("w3g16", "w3g8"))
    plan = spend(tiny, scores, effective_bits=4.0, candidates=["w3g16", "w3g8"])
    assert {str(found) for found in plan.formats.values()} == {"w3g16"}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(0, 10), min_size=3, max_size=3), min_size=6, max_size=6), st.floats(3.1, 15.9))
def test_nothing_of_the_size_is_better(rows: list[list[float]], size: float) -> None:
    shapes = {"q": (16, 32), "k": (8, 32), "v": (8, 32), "o": (32, 16), "up": (48, 32), "down": (32, 48)}
    linears = tuple(linear(1, kind, *shape) for kind, shape in shapes.items())
    inventory = decoder(*linears, other={"model.norm": 32})
    scores = table(
        inventory,
        scores={m.address: dict(zip(CANDIDATES, row, strict=False)) for m, row in zip(linears, rows, strict=True)},
    )
    plan = spend(inventory, scores, effective_bits=size)
    limit = size * sum(module.weights for module in linears)
    best = min(
        math.fsum(scores.damage(m.address, choice) for m, choice in zip(linears, each, strict=True))
        for each in itertools.product(map(parse_choice, CANDIDATES), repeat=6)
        if sum(size_of(choice, m, "effective_bits") for m, choice in zip(linears, each, strict=True)) <= limit
    )
    assert damage(plan, scores) == pytest.approx(best, rel=1e-9, abs=1e-9)


def test_fused_modules_get_one_format_and_cost_optimality(tiny: Decoder) -> None:
    scores = table(tiny)
    free, tied = spend(tiny, scores, effective_bits=4.0), spend(tiny, scores, effective_bits=4.0, tie="fused")
    for layer, kinds in itertools.product((1, 2), (("q", "k", "v"), ("gate", "up"))):
        assert len({tied.formats[address(layer, kind)] for kind in kinds}) == 1
    assert damage(free, scores) <= damage(tied, scores)


def test_pinned_modules_get_what_they_are_pinned_to(tiny: Decoder) -> None:
    plan = spend(tiny, effective_bits=6.0, pin={"last_up": "keep", "1_attn": "w2g16"})
    assert str(plan.formats[address(2, "up")]) == "keep"
    assert {str(plan.formats[address(1, kind)]) for kind in "qkvo"} == {"w2g16"}
    assert plan.modules[address(2, "up")].why == "pinned"
    assert bits.account(plan, tiny).effective_bits <= 6.0


def test_the_controls_have_the_size_and_not_the_sense(tiny: Decoder) -> None:
    scores = table(tiny)
    size = {"effective_bits": 4.25}
    plans = {name: spend(tiny, scores, allocation=name, **size) for name in ("uniform", "last_layers", "inverse")}
    plans |= {f"random {seed}": spend(tiny, scores, allocation="random", seed=seed, **size) for seed in range(3)}
    best = damage(spend(tiny, scores, **size), scores)
    for plan in plans.values():
        assert bits.account(plan, tiny).effective_bits <= 4.25
        assert damage(plan, scores) >= best
    assert {str(found) for found in plans["uniform"].formats.values()} == {"w3g16"}
    assert str(plans["last_layers"].formats[address(2, "down")]) == "w4g16"
    assert Counter(map(str, plans["last_layers"].formats.values())).keys() == {"w3g16", "w4g16"}
    assert len({tuple(plan.formats.values()) for plan in plans.values()}) == len(plans)
    assert damage(plans["inverse"], scores) > 1.2 * best


def test_sparsities_are_candidates_too(tiny: Decoder) -> None:
    texts = ("0.3", "0.5", "0.7")
    scores = {m.address: {t: (i + 1) * m.weights * float(t) ** 2 for t in texts} for i, m in enumerate(tiny.linears)}
    sparse = table(tiny, method="sparsegpt", scores=scores)
    spec = BudgetSpec(sparsity=0.5, candidates=texts)  # type: ignore[arg-type]
    plan = budget_plan(spec, tiny, "tiny", "sparsegpt", sparse)
    zeros = sum(round(p.sparsity.fraction * tiny[a].weights) for a, p in plan.modules.items() if p.sparsity)
    assert 0.5 <= zeros / sum(m.weights for m in tiny.linears) < 0.52
    assert len({str(p.sparsity) for p in plan.modules.values()}) > 1
    uniform = budget_plan(spec.model_copy(update={"allocation": "uniform"}), tiny, "tiny", "sparsegpt", sparse)
    assert {str(p.sparsity) for p in uniform.modules.values()} == {"0.5"}


def test_importance_spends_bits_where_it_lies(tiny: Decoder) -> None:
    importance = {
        "backtracking": {m.address: 100.0 if m.kind == "up" else 1.0 for m in tiny.linears},
        "adding_knowledge": {m.address: 100.0 if m.kind == "q" else 1.0 for m in tiny.linears},
    }
    plan = PlanSpec.model_validate(
        {"budget": {"effective_bits": 6, "candidates": CANDIDATES, "scores": "importance", "weights": {"all": 1}}}
    )
    assert needs_importance(plan) and not tables_wanted(plan)
    assert plan.budget is not None
    one = plan.budget.model_copy(update={"weights": {"backtracking": 1.0}})
    made = importance_table(importance, one, tiny, "tiny", "rtn")
    assert made.scores[address(1, "up")]["w2g16"] == pytest.approx(100 / (2 * 100 + 12) / 16)
    both = build_plan(plan, tiny, "tiny", "rtn", importance)
    wide = {a for a, f in both.formats.items() if str(f) in ("keep", "w4g16")}
    assert {address(1, "up"), address(2, "up"), address(1, "q"), address(2, "q")} <= wide
    with pytest.raises(UserError, match="it needs the importance"):
        build_plan(plan, tiny, "tiny", "rtn")
    with pytest.raises(UserError, match="the importance has backtracking, adding_knowledge"):
        importance_table(importance, one.model_copy(update={"weights": {"x": 1.0}}), tiny, "tiny", "rtn")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"effective_bits": 2.9}, r"effective_bits: 2\.9: no plan takes less than 3 "),
        ({"effective_bits": 17}, r"the largest plan of these candidates takes 16;"),
        ({"bytes": 1000}, r"bytes: 1000: no plan takes less than \d+"),
        ({"sparsity": 0.5}, "the largest plan|no plan takes more than 0 "),
        ({"effective_bits": 4, "candidates": ["any4g16@0.5", "w3g16"]}, "candidate any4g16@0.5: method anyk sets no "),
        ({"effective_bits": 4, "candidates": ["0.5", "w3g16"]}, "candidate 0.5: method gptq sets no weights to zero"),
        ({"effective_bits": 4, "pin": {"32_up": "keep"}}, "pin: selector '32_up' matches no module"),
        ({"effective_bits": 8, "pin": {"1_up": "keep", "1_mlp": "w3g16"}}, "1_up is pinned to keep and w3g16"),
        ({"effective_bits": 8, "pin": {"1_up": "keep"}, "tie": "fused"}, "1_gate, 1_up are tied .* pin all of them"),
        ({"effective_bits": 4, "candidates": ["w2g16", "w8g16"]}, "have no damage of .*q_proj in w8g16"),
    ],
)
def test_what_can_not_be_asked_for(tiny: Decoder, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        spend(tiny, **keys)


def test_scores_of_another_method_are_refused(tiny: Decoder) -> None:
    with pytest.raises(UserError, match="the error of rtn, the plan compresses by gptq; score gptq"):
        spend(tiny, table(tiny, method="rtn"), effective_bits=4)
    spec = BudgetSpec.model_validate({"effective_bits": 4, "candidates": CANDIDATES})
    with pytest.raises(UserError, match="it needs scores"):
        budget_plan(spec, tiny, "tiny", "gptq")
    # What ignores scores needs none.
    assert budget_plan(spec.model_copy(update={"allocation": "uniform"}), tiny, "tiny", "gptq").modules


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "this one has none"),
        ({"effective_bits": 3, "bytes": 5}, "has effective_bits, bytes"),
        ({"effective_bits": 3, "candidates": ["w2", "w2"]}, "a candidate is there twice"),
        ({"effective_bits": 3, "candidates": ["w2", "w9"]}, "format 'w9' is not known"),
    ],
)
def test_budgets_that_contradict_themselves(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BudgetSpec.model_validate({"candidates": CANDIDATES, **keys})


@pytest.mark.parametrize("keys", [{}, {"default": "w3", "budget": {"effective_bits": 3, "candidates": ["w2", "w4"]}}])
def test_a_plan_is_one_or_the_other(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="default"):
        PlanSpec.model_validate(keys)


def test_a_70b_model_fits_its_budget() -> None:
    shapes = {"q": (8192, 8192), "k": (1024, 8192), "v": (1024, 8192), "o": (8192, 8192)}
    shapes |= {"gate": (28672, 8192), "up": (28672, 8192), "down": (8192, 28672)}
    linears = tuple(linear(i, k, *s) for i in range(1, 81) for k, s in shapes.items())
    texts = ["w2g64", "w3g64", "w4g64", "w4g32", "w5g64", "w6g64", "w8g128", "keep"]
    problem = budget_problem(
        BudgetSpec(effective_bits=3.5, candidates=texts),  # type: ignore[arg-type]
        decoder(*linears),
        "gptq",
    )
    assert (len(problem.parts), len(problem.costs[0])) == (560, 8)
    assert problem.limit == sum(module.weights for module in linears) * 7 // 2


def test_files_keep_to_their_size(tiny: Decoder) -> None:
    def files(plan: Plan) -> int:
        """A format that pads 3 bits to 4, and writes a header."""
        wider = sum(m.weights // 8 for m in tiny.linears if str(plan.formats[m.address]) == "w3g16")
        return bits.account(plan, tiny).packed_bytes + wider + 1000

    spec = BudgetSpec.model_validate({"file_bytes": 21_000, "candidates": CANDIDATES})
    plan = budget_plan(spec, tiny, "tiny", "gptq", table(tiny), files)
    assert 20_000 < files(plan) <= 21_000
    assert plan.modules[address(1, "q")].why == "budget file_bytes 21000, optimal"
    for size, message in ((9_000, r"9000: the smallest plan of these .* takes (\d+);"), (10**6, r"largest .* (\d+);")):
        with pytest.raises(UserError, match=message) as refused:
            budget_plan(spec.model_copy(update={"file_bytes": size}), tiny, "tiny", "gptq", table(tiny), files)
        said = re.search(message, str(refused.value))
        assert said is not None
        asked = spec.model_copy(update={"file_bytes": int(said[1])})
        assert files(budget_plan(asked, tiny, "tiny", "gptq", table(tiny), files)) == int(said[1])
    with pytest.raises(UserError, match="give bytes instead"):
        budget_plan(spec, tiny, "tiny", "gptq", table(tiny))


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0, 1),
    st.lists(st.floats(0.5, 2.0), min_size=4, max_size=4),
    st.integers(1, 512),
    st.sampled_from(["optimal", "random", "uniform", "last_layers", "inverse"]),
)
def test_files_never_exceed_their_size_and_few_plans_are_tried(
    tiny: Decoder, share: float, wider: list[float], padding: int, allocation: str
) -> None:
    times = dict(zip(CANDIDATES, wider, strict=True))
    tried = []

    def files(plan: Plan) -> int:
        """Files that hold each format in more or fewer bits than it has, filled up."""
        sizes = [bits.storage(m, plan.formats[m.address]).bytes * times[str(plan.formats[m.address])] for m in linears]
        tried.append(plan)
        return sum(-(-int(size) // padding) * padding for size in sizes) + 77

    linears = tiny.linears
    ends = [files(spend(tiny, allocation="uniform", effective_bits=size)) for size in (3, 16)]
    wanted = int(min(ends) + share * (max(ends) - min(ends)))
    spec = BudgetSpec.model_validate({"file_bytes": wanted, "candidates": CANDIDATES, "allocation": allocation})
    tried.clear()
    try:
        plan = budget_plan(spec, tiny, "tiny", "gptq", table(tiny), files)
    except UserError as refused:
        assert ends[0] > wanted or ends[1] < wanted, refused
    else:
        assert files(plan) <= wanted
    assert len(tried) < 30  # of some 40,000 sizes


def test_files_that_do_not_shrink_are_told_at_once(tiny: Decoder) -> None:
    spec = BudgetSpec.model_validate({"file_bytes": 49_999, "candidates": CANDIDATES})
    tried = []

    def dense(plan: Plan) -> int:
        tried.append(plan)
        return 50_000

    with pytest.raises(
        UserError, match=r"file_bytes: 49999: .* every plan .* takes 50000; .* compressed-tensors, gptq"
    ):
        budget_plan(spec, tiny, "tiny", "gptq", table(tiny), dense)
    assert len(tried) == 2
    exact = spec.model_copy(update={"file_bytes": 50_000})
    assert {str(f) for f in budget_plan(exact, tiny, "tiny", "gptq", table(tiny), dense).formats.values()} == {"keep"}


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["effective_bits", "code_bits", "bytes", "sparsity"]),
    st.booleans(),
    st.lists(st.sampled_from(["1_q", "2_up", "last_down", "1_o"]), max_size=3, unique=True),
    st.lists(st.integers(1, 999), min_size=3, max_size=3, unique=True),
)
def test_a_size_that_an_error_names_can_be_asked_for(
    tiny: Decoder, measure: str, small: bool, pinned: list[str], shares: list[int]
) -> None:
    sparse = measure == "sparsity"
    texts = [str(share / 1000) for share in shares] if sparse else ["w3g16", "w4g64", "w5g8"]
    out_of_reach = {"bytes": (1, 10**9), "sparsity": (0.99999, 0.00001)}.get(measure, (0.1, 99))
    keys = {"candidates": texts, "allocation": "random", "pin": dict.fromkeys(pinned, texts[1])}

    def made(size: object) -> Plan:
        spec = BudgetSpec.model_validate({**keys, measure: size})
        return budget_plan(spec, tiny, "tiny", "sparsegpt" if sparse else "gptq")

    with pytest.raises(UserError, match=r"no plan takes|the largest plan") as refused:
        made(out_of_reach[0 if small else 1])
    said = re.search(r"(?:than|takes) ([\d.]+)(?: |;)", str(refused.value))
    assert said is not None
    made(said[1])


@pytest.mark.parametrize("text", ["0.3", "0.5", "0.7", "0.333", "2:4"])
def test_a_budget_of_one_sparsity_is_that_sparsity(tiny: Decoder, text: str) -> None:
    choice = parse_choice(text)
    assert choice.sparsity is not None
    spec = BudgetSpec.model_validate(
        {"sparsity": choice.sparsity.fraction, "candidates": [text, "0.1", "0.9"], "allocation": "uniform"}
    )
    plan = budget_plan(spec, tiny, "tiny", "sparsegpt")
    assert {str(found.sparsity) for found in plan.modules.values()} == {text}
    alone = spec.model_copy(update={"allocation": "random", "candidates": (choice, parse_choice("0.05"))})
    assert budget_plan(alone, tiny, "tiny", "sparsegpt").modules.keys() == plan.modules.keys()


@pytest.mark.parametrize("measure", ["effective_bits", "code_bits", "bytes", "file_bytes", "sparsity"])
@pytest.mark.parametrize("size", [math.inf, math.nan, -math.inf])
def test_a_size_is_a_finite_number(measure: str, size: float) -> None:
    with pytest.raises(ValidationError, match=f"{measure}\n"):
        BudgetSpec.model_validate({measure: size, "candidates": CANDIDATES})


@pytest.mark.parametrize("keys", [{}, {"tie": "fused"}])
def test_scores_whose_sum_is_not_finite_are_refused(tiny: Decoder, keys: dict[str, str]) -> None:
    huge = {m.address: dict.fromkeys(CANDIDATES[:3], 1.5e308) for m in tiny.linears}
    with pytest.raises(UserError, match=r"the scores \(fisher, all\) are too large: their sum is not finite"):
        spend(tiny, table(tiny, scores=huge), effective_bits=4, **keys)


def test_a_budget_says_all_of_its_size(tiny: Decoder) -> None:
    plan = spend(tiny, allocation="uniform", bytes=1_987_654 // 100)
    assert {module.why for module in plan.modules.values()} == {"budget bytes 19876, uniform"}
    texts = {str(BudgetSpec.model_validate({"bytes": 86553207, "candidates": CANDIDATES}))}
    texts.add(str(BudgetSpec.model_validate({"effective_bits": 3, "candidates": CANDIDATES})))
    assert texts == {"budget bytes 86553207, optimal", "budget effective_bits 3, optimal"}
