"""Rules that make a plan: modules that leave the default format, by name, by chance or by importance.

default: w3g64
rules:
  - {match: last_mlp, format: keep}
  - {match: [1_up, "*_gate"], format: w4g64}
  - {match: {random: last_mlp, seed: 0}, format: keep}
  - {match: {least_important: last_*, count: 1, behaviour: all}, format: w3g64}
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError, model_validator

from mixprec.core.errors import UserError, from_pydantic
from mixprec.models.decoder import Decoder, Linear
from mixprec.numerics.sparsity import Sparsity
from mixprec.plan.alphapruning import EPSILON, allocate, by_block
from mixprec.plan.budget import FileSize, budget_plan, importance_table
from mixprec.plan.budgetspec import IMPORTANCE, BudgetSpec
from mixprec.plan.dropping import check_dropped
from mixprec.plan.methods import Method
from mixprec.plan.relative import ALL, Importance, summed_importance
from mixprec.plan.schema import FormatText, ModulePlan, Plan, SparsityText, Strict, fitted
from mixprec.plan.sensitivity import Sensitivity
from mixprec.plan.units import draw_others, lowest, units
from mixprec.traces.store import BEHAVIOURS


def _selectors(value: Any) -> tuple[str, ...]:
    listed = (value,) if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not listed or not all(isinstance(name, str) for name in listed):
        raise ValueError(f"{value!r} is neither a selector such as last_mlp nor a list of them")
    return tuple(listed)


#: One selector (see labels.select) or several, whose modules are joined.
Selectors = Annotated[tuple[str, ...], BeforeValidator(_selectors, json_schema_input_type=str | list[str])]


class RandomMatch(Strict):
    """A control for a protection: for each module that ``random`` selects, another one of the same shape.

    Never one of the selected modules themselves: the same number of weights, but other ones.
    """

    random: Selectors
    seed: int

    def __str__(self) -> str:
        return f"random as {_names(self.random)}, seed {self.seed}"


class _Ranked(Strict):
    count: int = Field(default=1, ge=1)
    behaviour: str = ALL


class LeastImportant(_Ranked):
    """The ``count`` modules with the lowest importance among the selected ones."""

    least_important: Selectors

    def __str__(self) -> str:
        return f"{self.count} least important of {_names(self.least_important)}, behaviour {self.behaviour}"


class MostImportant(_Ranked):
    """The ``count`` modules with the highest importance among the selected ones."""

    most_important: Selectors

    def __str__(self) -> str:
        return f"{self.count} most important of {_names(self.most_important)}, behaviour {self.behaviour}"


def _names(selectors: Sequence[str]) -> str:
    return ", ".join(selectors)


_KINDS: dict[str, type[Strict]] = {
    "random": RandomMatch,
    "least_important": LeastImportant,
    "most_important": MostImportant,
}


def _kind_of_match(value: Any) -> str | None:
    if isinstance(value, str | list | tuple):
        return "list"
    if isinstance(value, Strict):
        return type(value).__name__
    keys = value if isinstance(value, dict) else ()
    return next((kind.__name__ for key, kind in _KINDS.items() if key in keys), None)


#: Tags are the classes' names, which are no keys, so that errors.from_pydantic leaves them out of paths.
Match = Annotated[
    Annotated[Selectors, Tag("list")]
    | Annotated[RandomMatch, Tag("RandomMatch")]
    | Annotated[LeastImportant, Tag("LeastImportant")]
    | Annotated[MostImportant, Tag("MostImportant")],
    Discriminator(
        _kind_of_match,
        custom_error_type="match",
        custom_error_message="a match is a selector, a list of selectors, {random: SELECTOR, seed: N}, "
        "{least_important: SELECTOR, count: N, behaviour: NAME} or the same with most_important",
    ),
]


class Rule(Strict):
    """The modules that ``match`` names get ``format``, ``sparsity``, ``method``; the default's for what isn't said."""

    match: Match
    format: FormatText | None = None
    sparsity: SparsityText | None = None
    method: Method | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Rule:
        if self.format is None and self.sparsity is None and self.method is None:
            raise ValueError("a rule says what becomes of its modules: format, sparsity or method")
        return self

    @property
    def says(self) -> str:
        """What it makes of its modules, for the reader."""
        parts = [str(self.format or ""), f"sparsity {self.sparsity}" if self.sparsity else "", self.method or ""]
        return ", ".join(part for part in parts if part)

    def __str__(self) -> str:
        return _names(self.match) if isinstance(self.match, tuple) else str(self.match)


class AlphaPruning(Strict):
    """Sparsities by the tails of the weights' spectra, ``alphapruning`` on average (plan/alphapruning.py)."""

    alphapruning: float = Field(gt=0, lt=1, description="share of all weights that become zero")
    epsilon: float = Field(
        EPSILON, ge=0, lt=1, description="the most that a sparsity differs from the average, relative"
    )
    per: Literal["block", "module"] = Field("block", description="one sparsity for a block, or for each module")

    def __str__(self) -> str:
        return f"alphapruning {self.alphapruning:g} per {self.per}"


class PlanSpec(Strict):
    """The ``plan:`` part of a recipe: what all modules get, and rules for those that get something else; or a budget
    to spend."""

    default: FormatText | None = Field(None, description="the format of all modules that no rule names")
    budget: BudgetSpec | None = Field(None, description="instead of default and rules: least damage for a size")
    sparsity: SparsityText | AlphaPruning | None = None
    method: Method | None = Field(None, description="default: the recipe's compress.method")
    rules: tuple[Rule, ...] = ()
    tie: Literal["fused"] | None = Field(
        None,
        description="fused: a rule for one of q, k, v means all three, one for gate or up both, one for an expert all "
        "of its layer",
    )

    @model_validator(mode="after")
    def _one_way(self) -> PlanSpec:
        if self.default is None and self.budget is None:
            raise ValueError("a plan has a default format, such as default: w3g64, or a budget")
        if self.budget is not None and self.tie is not None:
            raise ValueError("a budget has a tie of its own: write budget: {tie: fused, …}")
        if self.budget is not None and (self.default is not None or self.sparsity is not None or self.rules):
            raise ValueError(
                "a budget stands alone; in the place of default, sparsity and rules it has candidates, pin"
            )
        return self


def needs_importance(spec: PlanSpec) -> bool:
    """Whether a rule ranks modules, so that an importance has to be computed first."""
    if spec.budget is not None:
        return spec.budget.needs_scores and spec.budget.scores == (IMPORTANCE,)
    return any(isinstance(rule.match, _Ranked) for rule in spec.rules)


def is_control(spec: PlanSpec) -> bool:
    """Whether a plan is there for others to beat: a random draw, or a budget that is spent without the scores."""
    if spec.budget is not None:
        return spec.budget.allocation != "optimal"
    return any(isinstance(rule.match, RandomMatch) for rule in spec.rules)


def tables_wanted(spec: PlanSpec) -> tuple[str, ...]:
    """Tables that a budget is spent by: paths, or ``sensitivity`` for the recipe's own; empty where none are needed."""
    budget = spec.budget
    return () if budget is None or not budget.needs_scores or budget.scores == (IMPORTANCE,) else budget.scores


def needs_spectra(spec: PlanSpec) -> bool:
    """Whether sparsities come from the weights' spectra, which have to be computed first."""
    return isinstance(spec.sparsity, AlphaPruning)


def build_plan(
    spec: PlanSpec,
    inventory: Decoder,
    model: str,
    method: Method,
    importance: Importance | None = None,
    alphas: Mapping[str, float] | None = None,
    table: Sensitivity | None = None,
    file_size: FileSize | None = None,
) -> Plan:
    """The plan that the rules or the budget make for the model of ``inventory``, all its linear modules listed, and
    embedding and head where a rule names them.

    ``alphas``: module address -> exponent of its spectrum, for AlphaPruning. ``table``: predicted damage, for a budget.
    ``file_size``: what a plan's checkpoint takes, for a budget of file_bytes.
    Raises UserError naming the rules where a selector matches nothing, two rules give a module different
    formats, a random draw or a ranking asks for more modules than there are, or the importance doesn't fit; and where
    a budget can't be kept (plan/budget.py).
    """
    if spec.budget is not None:
        if needs_importance(spec):
            table = importance_table(importance, spec.budget, inventory, model, spec.method or method)
        return budget_plan(spec.budget, inventory, model, spec.method or method, table, file_size)
    claims, problems = _claims(spec, range(len(spec.rules)), inventory, importance)
    if problems:
        raise UserError("; ".join(problems))
    free = [module for module in inventory.linears if module.address not in claims]
    sparsities = _sparsities(spec, free, alphas)

    @functools.cache  # modules of equal lines share one: of mixtures there are tens of thousands
    def line(claimed: tuple[int, ...], sparsity: Sparsity | None, columns: int) -> ModulePlan:
        return fitted(_module_plan(spec, claimed, sparsity), columns)

    modules = {
        module.address: line(tuple(claims.get(module.address, ())), sparsities.get(module.address), module.in_features)
        for module in inventory.matrices
        if module.layer or module.address in claims
    }
    try:
        made = Plan(model=model, method=spec.method or method, modules=modules)
    except ValidationError as problem:
        raise from_pydantic(problem, "plan", Plan) from None
    check_dropped(made.dropped, inventory, "plan")
    return made


def unranked(inventory: Decoder) -> Importance:
    """An importance that ranks nothing, to find what is wrong with rules before there is one."""
    return {behaviour: dict.fromkeys((module.address for module in inventory.linears), 1.0) for behaviour in BEHAVIOURS}


def rule_problems(spec: PlanSpec, inventory: Decoder) -> list[str]:
    """What is wrong with rules whatever the importance: selectors that match nothing, counts that are too high, rules
    that fight."""
    fixed = [index for index, rule in enumerate(spec.rules) if not isinstance(rule.match, _Ranked)]
    ranked = [index for index in range(len(spec.rules)) if index not in fixed]
    _, problems = _claims(spec, fixed, inventory, None)
    for index in ranked:
        problems += _claims(spec, [index], inventory, unranked(inventory))[1]
    return problems


def may_rank(spec: PlanSpec, inventory: Decoder) -> set[str]:
    """Addresses of the modules that rules choose from by importance."""
    matches = [rule.match for rule in spec.rules]
    chosen = [match.least_important for match in matches if isinstance(match, LeastImportant)]
    chosen += [match.most_important for match in matches if isinstance(match, MostImportant)]
    found = [units(inventory, selectors, spec.tie == "fused") for selectors in chosen]
    return {module.address for each in found for unit in each for module in unit}


def without_ranking(spec: PlanSpec) -> PlanSpec:
    """The plan's default and the rules that need no importance."""
    return spec.model_copy(update={"rules": tuple(r for r in spec.rules if not isinstance(r.match, _Ranked))})


def _claims(
    spec: PlanSpec, rules: Iterable[int], inventory: Decoder, importance: Importance | None
) -> tuple[dict[str, list[int]], list[str]]:
    """Address -> numbers of the rules that name it, and what is wrong with these ``rules``."""
    claims: dict[str, list[int]] = {}
    problems = []
    for index in rules:
        try:
            found = _matched(spec.rules[index].match, inventory, importance, spec.tie == "fused")
        except UserError as problem:
            problems.append(f"{_rule_name(spec, index)}: {problem}")
            continue
        for module in found:
            claims.setdefault(module.address, []).append(index)
    return claims, [*problems, *_conflicts(spec, claims)]


def _rule_name(spec: PlanSpec, index: int) -> str:
    return f"plan.rules[{index}] ({spec.rules[index]})"


def _sparsities(spec: PlanSpec, modules: Sequence[Linear], alphas: Mapping[str, float] | None) -> dict[str, Sparsity]:
    """Address -> sparsity of the modules that no rule names."""
    if spec.sparsity is None:
        return {}
    if isinstance(spec.sparsity, Sparsity):
        return {module.address: spec.sparsity for module in modules}
    if alphas is None:
        raise UserError(
            f"plan.sparsity ({spec.sparsity}): the weights' spectra are not there; mixprec run computes them"
        )
    chosen = {module.address: alphas[module.address] for module in modules}
    if spec.sparsity.per == "block":
        chosen = by_block(chosen, {module.address: module.layer for module in modules})
    weights = {module.address: module.weights for module in modules}
    shares = allocate(chosen, weights, spec.sparsity.alphapruning, epsilon=spec.sparsity.epsilon)
    return {address: Sparsity(share) for address, share in shares.items()}


def _module_plan(spec: PlanSpec, claims: Sequence[int], sparsity: Sparsity | None) -> ModulePlan:
    assert spec.default is not None  # PlanSpec sees to it; a budget makes its plan elsewhere
    if not claims:
        why = str(spec.sparsity) if needs_spectra(spec) else "default"
        return ModulePlan(format=spec.default, sparsity=sparsity, why=why)
    rule = spec.rules[claims[0]]
    # A rule that names a format alone, such as keep, means all of it: nothing of the default's sparsity stays.
    inherited = spec.sparsity if isinstance(spec.sparsity, Sparsity) and rule.format is None else None
    sparsity = rule.sparsity or inherited
    return ModulePlan(
        format=spec.default if rule.format is None else rule.format,
        sparsity=sparsity,
        method=rule.method,
        why=f"rules[{claims[0]}]: {rule}",
    )


def _conflicts(spec: PlanSpec, claims: Mapping[str, Sequence[int]]) -> list[str]:
    fights: dict[tuple[int, int], list[str]] = {}
    for address, rules in claims.items():
        for other in rules[1:]:
            if spec.rules[other].says != spec.rules[rules[0]].says:
                fights.setdefault((rules[0], other), []).append(address)
    return [_fight(spec, pair, addresses) for pair, addresses in fights.items()]


def _fight(spec: PlanSpec, pair: tuple[int, int], addresses: Sequence[str]) -> str:
    first, second = pair
    more = f" and {len(addresses) - 1} more" if len(addresses) > 1 else ""
    return (
        f"{addresses[0]}{more}: {_rule_name(spec, first)} says {spec.rules[first].says}, "
        f"{_rule_name(spec, second)} says {spec.rules[second].says}; make the selectors disjoint"
    )


def _matched(
    match: tuple[str, ...] | RandomMatch | LeastImportant | MostImportant,
    inventory: Decoder,
    importance: Importance | None,
    tied: bool,
) -> list[Linear]:
    if isinstance(match, RandomMatch):
        return draw_others(inventory, units(inventory, match.random, tied), match.seed, tied)
    if isinstance(match, LeastImportant):
        scores = summed_importance(match.behaviour, inventory, importance)
        return lowest(units(inventory, match.least_important, tied), scores, match.count)
    if isinstance(match, MostImportant):
        scores = summed_importance(match.behaviour, inventory, importance)
        negated = {address: -score for address, score in scores.items()}
        return lowest(units(inventory, match.most_important, tied), negated, match.count)
    return [module for unit in units(inventory, match, tied, outside=True) for module in unit]
