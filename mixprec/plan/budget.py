"""A plan for a budget: which module gets which format so that the predicted damage is least, and its controls.

budget:
  effective_bits: 3.5
  candidates: [w2g64, w3g64, w4g64, w5g64, w6g64, keep]
  scores: sensitivity.json
  tie: fused
  pin: {last_up: keep}

The solver is plan/knapsack.py; sizes are those of plan/bits.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from pydantic import ValidationError

from mixprec.errors import UserError, from_pydantic
from mixprec.modules import FUSED, Inventory, LinearModule, select
from mixprec.plan import bits, controls, mixtures
from mixprec.plan.budgetspec import IMPORTANCE, BudgetSpec
from mixprec.plan.knapsack import Unit, solve
from mixprec.plan.relative import Importance, relative_importance
from mixprec.plan.schema import Method, ModulePlan, Plan, Treatment
from mixprec.plan.sensitivity import ALL, Choice, Sensitivity


class Part(NamedTuple):
    """Modules that get one choice together, and what they may get."""

    modules: tuple[LinearModule, ...]
    choices: tuple[Choice, ...]


class Problem(NamedTuple):
    """A budget on a model: ``parts`` in the model's order, ``costs`` of their choices, and the ``limit`` of the sum."""

    parts: tuple[Part, ...]
    costs: tuple[tuple[int, ...], ...]
    limit: int

    def units(self, damages: Sequence[Sequence[float]]) -> list[Unit]:
        """The solver's units with these ``damages`` (parts, choices)."""
        return [Unit(cost, tuple(damage)) for cost, damage in zip(self.costs, damages, strict=True)]

    def cost(self, chosen: Sequence[int]) -> int:
        """What a choice for each part costs together."""
        return sum(cost[index] for cost, index in zip(self.costs, chosen, strict=True))

    def choices(self, chosen: Sequence[int]) -> dict[str, Choice]:
        """Address -> choice, in the order of the parts."""
        found = zip(self.parts, chosen, strict=True)
        return {module.address: part.choices[index] for part, index in found for module in part.modules}


#: The bytes that a plan's checkpoint will take on disk.
FileSize = Callable[[Plan], int]


def budget_plan(
    spec: BudgetSpec,
    inventory: Inventory,
    model: str,
    method: Method,
    table: Sensitivity | None = None,
    file_size: FileSize | None = None,
) -> Plan:
    """The plan that spends ``spec``'s budget on the model of ``inventory``.

    ``table``: predicted damage; allocations that don't look at scores need none. ``file_size``: for ``file_bytes``.
    Raises UserError for budgets below the smallest plan or above the largest, candidates that ``method`` can't make,
    pins that match nothing or fight, scores that are missing or of another method.
    """
    if spec.file_bytes is not None:
        return _for_files(spec, inventory, model, method, table, file_size)
    problem = budget_problem(spec, inventory, method)
    if spec.allocation in ("uniform", "last_layers"):
        units = problem.units([[0.0] * len(part.choices) for part in problem.parts])
        found = controls.uniform(units, problem.limit)
        if found is None:
            raise UserError(f"plan.budget: no single candidate for all modules fits {spec.measure} {spec.size:g}")
        chosen = found if spec.allocation == "uniform" else controls.from_the_end(units, found, problem.limit)
    elif spec.allocation == "llama_cpp":
        chosen = _mixture(spec, problem, inventory)
    else:
        chosen = solve(problem.units(_damages(spec, problem.parts, table, method)), problem.limit)
    return as_plan(problem.choices(chosen), spec, inventory, model, method)


def _mixture(spec: BudgetSpec, problem: Problem, inventory: Inventory) -> list[int]:
    """The largest of llama.cpp's mixtures that fits; of equal ones the first."""
    every = [mixtures.chosen(name, problem.parts, inventory) for name in mixtures.MIXTURES]
    fitting = [found for found in every if found is not None and problem.cost(found) <= problem.limit]
    if not fitting:
        raise UserError(
            f"plan.budget.allocation: llama_cpp: none of {', '.join(mixtures.MIXTURES)} fits {spec.measure} "
            f"{spec.size:g} and can be made of these candidates; add candidates of 2 to 6 bits, or raise the budget"
        )
    return max(fitting, key=problem.cost)


def _for_files(
    spec: BudgetSpec,
    inventory: Inventory,
    model: str,
    method: Method,
    table: Sensitivity | None,
    file_size: FileSize | None,
) -> Plan:
    """The best plan in packed bytes whose files keep to ``file_bytes``: what files take besides (padding, headers,
    formats that they hold in a wider one) goes off the budget until it fits."""
    wanted = spec.file_bytes
    if file_size is None or wanted is None:
        raise UserError("plan.budget.file_bytes: it is not known how the checkpoint is written; give bytes instead")
    other = sum(inventory.other.values()) * bits.WORD // 8
    costs = _costs(_parts(spec, inventory), "bytes")
    least, most = (sum(extreme(row) for row in costs) + other for extreme in (min, max))
    room = min(wanted, most)
    while room >= least:
        packed = spec.model_copy(update={"file_bytes": None, "bytes": room})
        plan = budget_plan(packed, inventory, model, method, table)
        over = file_size(plan) - wanted
        if over < 0 and room == most:
            raise UserError(
                f"plan.budget.file_bytes: {wanted}: the largest plan of these candidates takes {wanted + over}; ask "
                "for that, or add larger"
            )
        if over <= 0:
            return plan
        room -= over
    raise UserError(
        f"plan.budget.file_bytes: {wanted}: no plan's files are that small with these candidates; add smaller ones"
    )


def as_plan(
    choices: Mapping[str, Choice], spec: BudgetSpec, inventory: Inventory, model: str, method: Method, why: str = ""
) -> Plan:
    """The plan in which every module of the model gets its choice; ``why``: default: the budget."""
    pinned = {module.address for modules, _ in pins(spec, inventory) for module in modules}
    modules = {
        module.address: ModulePlan(
            format=choices[module.address].format,
            sparsity=choices[module.address].sparsity,
            why="pinned" if module.address in pinned else why or str(spec),
        )
        for module in inventory.linears
    }
    try:
        return Plan(model=model, method=method, modules=modules)
    except ValidationError as problem:
        raise from_pydantic(problem, "plan.budget", Plan) from None


def budget_problem(spec: BudgetSpec, inventory: Inventory, method: Method) -> Problem:
    """The budget as a knapsack, but for the damages. Raises UserError as ``budget_plan`` does."""
    _check_candidates(spec, method)
    parts = tuple(_parts(spec, inventory))
    costs = _costs(parts, spec.measure)
    return Problem(parts, costs, _limit(spec, inventory, costs))


def _costs(parts: Sequence[Part], measure: str) -> tuple[tuple[int, ...], ...]:
    """(parts, choices) what each choice adds to a plan's size."""
    return tuple(
        tuple(sum(size_of(choice, module, measure) for module in part.modules) for choice in part.choices)
        for part in parts
    )


def size_of(choice: Choice, module: LinearModule, measure: str) -> int:
    """What a module in ``choice`` adds to a plan's size: bits, bytes, or weights that are not zero."""
    if measure == "sparsity":
        return module.weights - round((choice.sparsity.fraction if choice.sparsity else 0.0) * module.weights)
    stored = bits.storage(module, choice.format)  # checkpoints hold the zeros
    if measure == "bytes":
        return stored.bytes
    return stored.codes if measure == "code_bits" else stored.bits


def _check_candidates(spec: BudgetSpec, method: Method) -> None:
    for choice in (*spec.candidates, *spec.pin.values()):
        problem = Treatment(format=choice.format, sparsity=choice.sparsity, method=method).problem()
        if problem:
            raise UserError(f"plan.budget: candidate {choice}: {problem}")


def _parts(spec: BudgetSpec, inventory: Inventory) -> list[Part]:
    """Units in the model's order; pinned modules have one choice. A tied group that is pinned in part is an error."""
    pinned: dict[str, Choice] = {}
    for modules, choice in pins(spec, inventory):
        for module in modules:
            if pinned.setdefault(module.address, choice) != choice:
                raise UserError(f"plan.budget.pin: {module.label} is pinned to {pinned[module.address]} and {choice}")
    parts = []
    for group in _groups(spec, inventory):
        wanted = {pinned.get(module.address) for module in group}
        if len(wanted) > 1:
            named = ", ".join(module.label for module in group)
            raise UserError(f"plan.budget.pin: {named} are tied and get one format; pin all of them or none")
        pin = wanted.pop()
        parts.append(Part(group, spec.candidates if pin is None else (pin,)))
    return parts


def pins(spec: BudgetSpec, inventory: Inventory) -> list[tuple[list[LinearModule], Choice]]:
    """What is pinned, and to what. Raises UserError for selectors that match nothing."""
    found = []
    for selector, choice in spec.pin.items():
        try:
            found.append((select(inventory.linears, selector), choice))
        except UserError as problem:
            raise UserError(f"plan.budget.pin: {problem}") from None
    return found


def _groups(spec: BudgetSpec, inventory: Inventory) -> Iterator[tuple[LinearModule, ...]]:
    """Modules that get one choice, in the order of their first members."""
    first = {kind: kinds for kinds in FUSED for kind in kinds} if spec.tie == "fused" else {}
    groups: dict[tuple[int, tuple[str, ...]], list[LinearModule]] = {}
    for module in inventory.linears:
        groups.setdefault((module.layer, first.get(module.kind, (module.kind,))), []).append(module)
    return (tuple(group) for group in groups.values())


def _limit(spec: BudgetSpec, inventory: Inventory, costs: Sequence[Sequence[int]]) -> int:
    """The limit for the sum of the parts' ``costs`` (parts, choices).

    Raises UserError where it is below the smallest plan or above the largest.
    """
    weights = sum(module.weights for module in inventory.linears)
    other = sum(inventory.other.values()) * bits.WORD // 8 if spec.measure == "bytes" else 0
    scale = 1 if spec.measure == "bytes" else weights
    size = Fraction(repr(spec.size))  # as it is written: 3.3 x 100 is 330
    limit = math.floor((1 - size) * weights if spec.measure == "sparsity" else size * scale - other)
    least, most = (sum(extreme(row) for row in costs) for extreme in (min, max))

    def told(cost: int) -> str:
        found = 1 - cost / weights if spec.measure == "sparsity" else (cost + other) / scale
        return f"{found:.6g}"

    smaller = "more" if spec.measure == "sparsity" else "less"
    where = f"plan.budget.{spec.measure}: {spec.size:g}"
    if limit < least:
        raise UserError(f"{where}: no plan takes {smaller} than {told(least)} with these candidates; add smaller ones")
    if limit > most:
        raise UserError(
            f"{where}: the largest plan of these candidates takes {told(most)}; ask for that, or add larger"
        )
    return limit


def _damages(
    spec: BudgetSpec, parts: Sequence[Part], table: Sensitivity | None, method: Method
) -> list[tuple[float, ...]]:
    sizes, choices = [sum(module.weights for module in part.modules) for part in parts], [p.choices for p in parts]
    if spec.allocation == "random":
        return controls.random_damages(sizes, choices, spec.seed)
    if table is None:
        raise UserError(
            "plan.budget: it needs scores, but there are none; run mixprec sensitivity or mixprec attribute"
        )
    if table.method != method and table.scorer != IMPORTANCE:
        raise UserError(
            f"plan.budget: the scores are of the error of {table.method}, the plan compresses by {method}; "
            f"score {method}, or set compress.method to {table.method}"
        )
    damages = damages_of(parts, table)
    return damages if spec.allocation == "optimal" else controls.inverted(sizes, choices, damages)


def damages_of(parts: Sequence[Part], table: Sensitivity) -> list[tuple[float, ...]]:
    """(parts, choices) damage: the sum over a part's modules. Raises UserError for choices that the table lacks."""
    return [
        tuple(math.fsum(table.damage(module.address, choice) for module in part.modules) for choice in part.choices)
        for part in parts
    ]


def importance_table(
    importance: Importance | None, spec: BudgetSpec, inventory: Inventory, model: str, method: Method
) -> Sensitivity:
    """The paper's importance as damage: relative importance, summed over behaviours, times the choice's noise.

    ``spec.weights`` weigh behaviours; ``all``: all of them alike. Importance knows nothing of formats, so that a
    module's errors are taken to fall with the bits as rounding errors do.
    """
    if importance is None:
        raise UserError("plan.budget: it needs the importance, which is not there yet; run mixprec attribute first")
    given = spec.weights or {ALL: 1.0}
    weights = {behaviour: given.get(behaviour, 0.0) + given.get(ALL, 0.0) for behaviour in importance}
    unknown = sorted(given.keys() - {ALL, *importance})
    if unknown or not any(weights.values()):
        raise UserError(f"plan.budget.weights: {unknown or 'all are 0'}; the importance has {', '.join(importance)}")
    relative = {name: relative_importance(name, importance[name], inventory) for name in importance if weights[name]}
    scores = {}
    for module in inventory.linears:
        summed = math.fsum(weights[name] * scores_of[module.address] for name, scores_of in relative.items())
        scores[module.address] = {
            str(choice): summed * controls.noise(choice) for choice in spec.candidates if choice.changes
        }
    return Sensitivity(model=model, identity="", scorer=IMPORTANCE, method=method, scores=scores)
