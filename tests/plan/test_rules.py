from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mixprec.core.errors import UserError, from_pydantic
from mixprec.models.decoder import Decoder
from mixprec.numerics.formats import KEEP, Format
from mixprec.plan.rules import Importance, PlanSpec, RandomMatch, Rule, build_plan, needs_importance
from mixprec.plan.schema import Plan


def spec(default: str, *rules: dict[str, Any]) -> PlanSpec:
    return PlanSpec.model_validate({"default": default, "rules": rules})


def rule(match: Any, format: str = "keep") -> dict[str, Any]:
    return {"match": match, "format": format}


def plan_of(inventory: Decoder, made: PlanSpec, importance: Importance | None = None) -> Plan:
    return build_plan(made, inventory, "tiny", "rtn", importance)


def labels(inventory: Decoder, plan: Plan, format: str = "keep") -> list[str]:
    return [m.label for m in inventory.linears if str(plan.formats[m.address]) == format]


def test_default_and_selectors(tiny: Decoder) -> None:
    plan = plan_of(tiny, spec("w3g64", rule("last_mlp"), rule(["1_up", "1_q"], "w4g64_asym")))
    assert list(plan.modules) == [module.address for module in tiny.linears]
    assert labels(tiny, plan) == ["2_gate", "2_up", "2_down"]
    assert labels(tiny, plan, "w4g64_asym") == ["1_q", "1_up"]
    assert plan.modules["model.layers.1.mlp.up_proj"].why == "rules[0]: last_mlp"
    assert plan.modules["model.layers.0.mlp.up_proj"].why == "rules[1]: 1_up, 1_q"
    assert plan.modules["model.layers.0.mlp.gate_proj"].why == "default"


def test_selective_quantization_of_one_module(llama_8b: Decoder) -> None:
    plan = build_plan(spec("keep", rule("32_up", "w3g128")), llama_8b, "r1", "rtn")
    assert labels(llama_8b, plan, "w3g128") == ["32_up"]
    assert len(labels(llama_8b, plan)) == 223


def test_rules_that_agree_may_overlap(tiny: Decoder) -> None:
    plan = plan_of(tiny, spec("w3g64", rule("last_mlp"), rule("*_up")))
    assert labels(tiny, plan) == ["1_up", "2_gate", "2_up", "2_down"]


def test_rules_that_fight_are_both_named_with_the_module(tiny: Decoder) -> None:
    with pytest.raises(UserError) as caught:
        plan_of(tiny, spec("w3g64", rule("1_q"), rule("last_mlp"), rule("*_up", "w4g64")))
    message = str(caught.value)
    assert "model.layers.1.mlp.up_proj" in message
    assert "plan.rules[1] (last_mlp) says keep" in message
    assert "plan.rules[2] (*_up) says w4g64" in message


@pytest.mark.parametrize("match", ["9_up", {"random": "9_up", "seed": 0}, {"most_important": ["1_up", "9_up"]}])
def test_a_selector_that_matches_nothing_names_its_rule(tiny: Decoder, match: Any) -> None:
    importance = {"backtracking": {module.address: 1.0 for module in tiny.linears}}
    with pytest.raises(UserError, match=r"plan\.rules\[1\] \(.*9_up.*\): .*'9_up' matches no module"):
        plan_of(tiny, spec("w3g64", rule("1_q"), rule(match)), importance)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.sampled_from(["last_mlp", "1_up", "2_*", "*_q", "1_attn"]))
def test_a_random_control_has_the_same_shapes_and_no_module_of_the_original(
    tiny: Decoder, seed: int, selector: str
) -> None:
    original = set(labels(tiny, plan_of(tiny, spec("w3g64", rule(selector)))))
    made = spec("w3g64", rule({"random": selector, "seed": seed}))
    control = labels(tiny, plan_of(tiny, made))
    assert not original & set(control)
    assert labels(tiny, plan_of(tiny, made)) == control
    shape_of = {module.label: (module.out_features, module.in_features) for module in tiny.linears}
    assert sorted(shape_of[name] for name in control) == sorted(shape_of[name] for name in original)


def test_random_controls_are_the_same_on_every_machine(llama_8b: Decoder) -> None:
    def drawn(seed: int) -> list[str]:
        made = spec("w3g128", rule({"random": "last_mlp", "seed": seed}))
        return labels(llama_8b, build_plan(made, llama_8b, "r1", "rtn"))

    assert drawn(0) == ["6_up", "18_down", "27_gate"]
    assert len({tuple(drawn(seed)) for seed in range(20)}) > 10


def test_a_draw_from_too_few_modules_says_so(tiny: Decoder) -> None:
    with pytest.raises(UserError, match=r"rules\[0\].*48 x 32 of 1_gate.*select fewer"):
        plan_of(tiny, spec("w3g64", rule({"random": "*_mlp", "seed": 0})))


@pytest.fixture
def importance(tiny: Decoder) -> dict[str, dict[str, float]]:
    """Rising through the model for one behaviour; for the other 2_q alone, ten times as large in sum."""
    rising = {module.address: float(index) for index, module in enumerate(tiny.linears)}
    single = {module.address: 910.0 * (module.label == "2_q") for module in tiny.linears}
    return {"backtracking": rising, "adding_knowledge": single}


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ({"least_important": "last_*", "behaviour": "backtracking"}, ["2_q"]),
        ({"least_important": "last_*"}, ["2_k"]),  # over all behaviours 2_q is first: 7/91 + 1
        ({"most_important": "*_*"}, ["2_q"]),
        ({"most_important": "*_*", "count": 3}, ["2_q", "2_up", "2_down"]),
        ({"most_important": "*_*", "count": 2, "behaviour": "backtracking"}, ["2_up", "2_down"]),
        # Equal scores: the earlier module.
        ({"least_important": "*_*", "count": 2, "behaviour": "adding_knowledge"}, ["1_q", "1_k"]),
        ({"most_important": "*_*", "count": 2, "behaviour": "adding_knowledge"}, ["1_q", "2_q"]),
    ],
)
def test_rankings(tiny: Decoder, importance: Importance, match: Any, expected: list[str]) -> None:
    made = spec("w3g64", rule(match))
    assert needs_importance(made)
    assert labels(tiny, plan_of(tiny, made, importance)) == expected


def test_rankings_weigh_behaviours_equally(tiny: Decoder, importance: dict[str, dict[str, float]]) -> None:
    scaled = importance | {"backtracking": {k: 1e6 * v for k, v in importance["backtracking"].items()}}
    made = spec("w3g64", rule({"most_important": "*_*", "count": 3}))
    assert plan_of(tiny, made, scaled) == plan_of(tiny, made, importance)


def test_only_rankings_need_an_importance() -> None:
    assert not needs_importance(spec("w3g64", rule("last_mlp"), rule({"random": "last_mlp", "seed": 0})))


def test_bad_rankings(tiny: Decoder, importance: dict[str, dict[str, float]]) -> None:
    made = spec("w3g64", rule({"most_important": "last_mlp", "count": 4}))
    flat = {module.address: 0.0 for module in tiny.linears}
    some = dict(list(importance["backtracking"].items())[:-1])
    for given_importance, expected in [
        (None, "no importance yet"),
        (importance, "matches only 3 modules"),
        ({"backtracking": flat}, "all are 0"),
        ({"backtracking": flat | {"model.layers.0.mlp.up_proj": float("nan")}}, "up_proj has nan"),
        ({"backtracking": flat | {"model.layers.0.mlp.up_proj": -1.0}}, "up_proj has -1"),
        ({"backtracking": some}, "another model"),
    ]:
        with pytest.raises(UserError, match=rf"rules\[0\].*{expected}"):
            plan_of(tiny, made, given_importance)
    with pytest.raises(UserError, match=r"'deduction'.*all, backtracking, adding_knowledge"):
        plan_of(tiny, spec("w3", rule({"most_important": "last_mlp", "behaviour": "deduction"})), importance)


def test_bad_specs_are_reported_with_all_their_problems() -> None:
    bad = {
        "defalt": "w3g64",
        "rules": [
            rule({"randm": 1}, "w9"),
            rule({"random": 3, "seed": "x", "sed": 2}),
            rule({"least_important": "last_*", "count": 0}),
            rule([]),
            {"match": "last_up"},
            3,
        ],
    }
    with pytest.raises(ValidationError) as caught:
        PlanSpec.model_validate(bad)
    message = str(from_pydantic(caught.value, "recipes/a.yaml", PlanSpec))
    assert message.startswith("recipes/a.yaml: 10 problems\n")
    for expected in [
        "defalt: unknown key; did you mean default? (keys here: default, budget, sparsity, method, rules, tie)",
        "rules[0].match: {'randm': 1}: a match is a selector",
        "rules[0].format: format 'w9' is not known",
        "rules[1].match.random: 3 is neither a selector",
        "rules[1].match.seed: 'x'",
        "rules[1].match.sed: unknown key; did you mean seed? (keys here: random, seed)",
        "rules[2].match.count: 0",
        "rules[3].match: [] is neither a selector",
        "rules[4]: a rule says what becomes of its modules",
        "rules[5]: 3",
    ]:
        assert expected in message


def test_a_spec_made_in_python_or_dumped_is_the_same() -> None:
    parsed = spec("w3g64", rule({"random": ["last_mlp"], "seed": 1}), rule(["1_up"], "w4"))
    made = PlanSpec(
        default=Format(3, 64),
        rules=(
            Rule(match=RandomMatch(random=("last_mlp",), seed=1), format=KEEP),
            Rule(match=("1_up",), format=Format(4)),
        ),
    )
    assert made == parsed
    assert PlanSpec.model_validate(parsed.model_dump(mode="json")) == parsed


def test_one_problem_is_one_line() -> None:
    with pytest.raises(ValidationError) as caught:
        PlanSpec.model_validate({})
    assert str(from_pydantic(caught.value, "a.yaml", PlanSpec)).startswith("a.yaml: a plan has a default format")
