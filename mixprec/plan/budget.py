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
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import NamedTuple

from pydantic import ValidationError

from mixprec.core.errors import UserError, from_pydantic
from mixprec.models.decoder import Decoder, Linear
from mixprec.models.labels import select
from mixprec.plan import controls, mixtures
from mixprec.plan.budgetsize import limit_in, sizer, sizes
from mixprec.plan.budgetspec import IMPORTANCE, BudgetSpec
from mixprec.plan.expertbudget import droppings
from mixprec.plan.knapsack import Unit, solve
from mixprec.plan.methods import Method
from mixprec.plan.relative import Importance, relative_importance
from mixprec.plan.schema import ModulePlan, Plan, fitted
from mixprec.plan.sensitivity import ALL, DROPPED, Choice, Sensitivity


class Part(NamedTuple):
    """Modules that get one choice together, and what they may get."""

    modules: tuple[Linear, ...]
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
    inventory: Decoder,
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
    if DROPPED in spec.candidates:
        return _dropping(spec, inventory, model, method, table)
    problem = budget_problem(spec, inventory, method)
    choose = _allocator(spec, problem, inventory, table, method)

    def planned(chosen: Sequence[int]) -> Plan:
        return as_plan(problem.choices(chosen), spec, inventory, model, method)

    if spec.file_bytes is None:
        found = choose(problem.limit)
    elif file_size is None:
        raise UserError("plan.budget.file_bytes: it is not known how the checkpoint is written; give bytes instead")
    else:
        found = _in_files(spec.file_bytes, problem, choose, lambda chosen: file_size(planned(chosen)))
    if found is None and spec.allocation == "llama_cpp":
        raise UserError(
            f"plan.budget.allocation: llama_cpp: none of {', '.join(mixtures.MIXTURES)} fits {spec.measure} "
            f"{spec.limit} and can be made of these candidates; add candidates of 2 to 6 bits, or raise the budget"
        )
    if found is None:
        raise UserError(
            f"plan.budget: no single candidate for all modules fits {spec.measure} {spec.limit}"
            f"{_least_uniform(spec, inventory, problem)}"
        )
    return planned(found)


def _dropping(spec: BudgetSpec, inventory: Decoder, model: str, method: Method, table: Sensitivity | None) -> Plan:
    """The best plan over all numbers of experts that may be dropped (plan/expertbudget.py)."""
    least, plans = math.inf, None
    for dropping in droppings(inventory, pinned_choices(spec, inventory), table):
        problem = budget_problem(spec, inventory, method, dropping.dropped)
        units = problem.units(_damages(spec, problem.parts, table, method))
        if sum(min(unit.costs) for unit in units) > problem.limit:
            continue
        chosen = solve(units, problem.limit)
        damage = dropping.damage + math.fsum(unit.damages[n] for unit, n in zip(units, chosen, strict=True))
        if damage < least:
            least, plans = damage, (problem.choices(chosen) | dict.fromkeys(dropping.dropped, DROPPED))
    assert plans is not None  # budget_problem sees to it that the smallest fits
    return as_plan(plans, spec, inventory, model, method)


def check_reach(spec: BudgetSpec, inventory: Decoder, model: str, method: Method, file_size: FileSize) -> Problem:
    """Some plan keeps the budget, whatever the scores. Raises UserError as ``budget_plan`` does."""
    problem = budget_problem(spec, inventory, method)
    if spec.file_bytes is not None:
        _file_extremes(
            spec.file_bytes,
            problem,
            lambda chosen: file_size(as_plan(problem.choices(chosen), spec, inventory, model, method)),
        )
    return problem


def _least_uniform(spec: BudgetSpec, inventory: Decoder, problem: Problem) -> str:
    """The nearest size that one candidate for all modules keeps, where sizes add up over modules."""
    if spec.measure == "file_bytes":
        return ""
    # A pinned part has one choice.
    costs = [problem.cost([index % len(row) for row in problem.costs]) for index in range(len(spec.choices))]
    return f"; the smallest takes {sizes(spec, inventory, _named(problem.parts))[1](min(costs))}"


#: Limit -> what each part gets; None where an allocation that leaves no freedom has nothing that fits.
_Allocator = Callable[[int], Sequence[int] | None]


def _allocator(
    spec: BudgetSpec, problem: Problem, inventory: Decoder, table: Sensitivity | None, method: Method
) -> _Allocator:
    """How ``spec`` spends a limit."""
    if spec.allocation == "llama_cpp":
        every = [mixtures.chosen(name, problem.parts, inventory) for name in mixtures.MIXTURES]
        made = [found for found in every if found is not None]
        # The largest that fits; of equal ones the first.
        return lambda limit: max((m for m in made if problem.cost(m) <= limit), key=problem.cost, default=None)
    if spec.allocation in ("uniform", "last_layers"):
        alike = problem.units([[0.0] * len(part.choices) for part in problem.parts])

        def spend(limit: int) -> Sequence[int] | None:
            found = controls.uniform(alike, limit)
            return (
                found if found is None or spec.allocation == "uniform" else controls.from_the_end(alike, found, limit)
            )

        return spend
    units = problem.units(_damages(spec, problem.parts, table, method))
    return lambda limit: solve(units, limit)


#: Steps of the search for ``file_bytes`` that trust the last plan to say how far the next is; later ones halve.
_GUESSES = 8


def _in_files(
    wanted: int, problem: Problem, choose: _Allocator, size: Callable[[Sequence[int]], int]
) -> Sequence[int] | None:
    """What ``choose`` makes of the most packed bytes whose files, of ``size``, take no more than ``wanted``.

    What files take besides (padding, headers, formats that they hold in a wider one) is known of whole plans alone, so
    the room for packed bytes is searched: the last plan's files say how much more or less it may be.
    """
    extremes = _file_extremes(wanted, problem, size)
    low, high = problem.cost(extremes[0]) - 1, problem.cost(extremes[1]) + 1  # room that is enough, and too much
    best, room, steps = None, high - 1, 0
    while low + 1 < high:
        chosen, steps = choose(room), steps + 1
        left = 0 if chosen is None else wanted - size(chosen)
        if left < 0:
            high = room
        else:
            low, best = room, chosen
        guess = low if chosen is None else problem.cost(chosen) + left
        if best is not None and guess == low:
            break  # the files' bytes are spent
        room = guess if low < guess < high and steps <= _GUESSES else (low + high) // 2
    return best


def _file_extremes(wanted: int, problem: Problem, size: Callable[[Sequence[int]], int]) -> list[list[int]]:
    """The smallest and the largest plan; raises UserError where ``wanted`` bytes of files are beyond them."""
    extremes = [[extreme(range(len(row)), key=row.__getitem__) for row in problem.costs] for extreme in (min, max)]
    least, most = map(size, extremes)
    where = f"plan.budget.file_bytes: {wanted}"
    if least == most != wanted:
        raise UserError(
            f"{where}: in this checkpoint.format every plan of these candidates takes {least}; files that are as small "
            "as their plan have checkpoint.format compressed-tensors, gptq or gguf"
        )
    if wanted < least:
        raise UserError(f"{where}: the smallest plan of these candidates takes {least}; ask for that, or add smaller")
    if wanted > most:
        raise UserError(f"{where}: the largest plan of these candidates takes {most}; ask for that, or add larger")
    return extremes


def as_plan(
    choices: Mapping[str, Choice], spec: BudgetSpec, inventory: Decoder, model: str, method: Method, why: str = ""
) -> Plan:
    """The plan in which every module gets its choice, or llama.cpp's type that fits; ``why``: default: the budget."""
    pinned = pinned_choices(spec, inventory)
    choices = {**choices, **{address: choice for address, choice in pinned.items() if not inventory[address].layer}}
    modules = {}
    for module in inventory.planned(choices):
        chosen = choices[module.address].treatment(method)
        line = ModulePlan(
            format=chosen.format,
            sparsity=chosen.sparsity,
            method=None if chosen.method == method else chosen.method,
            why="pinned" if module.address in pinned else why or str(spec),
        )
        modules[module.address] = fitted(line, module.in_features)
    try:
        return Plan(model=model, method=method, modules=modules)
    except ValidationError as problem:
        raise from_pydantic(problem, "plan.budget", Plan) from None


def budget_problem(
    spec: BudgetSpec, inventory: Decoder, method: Method, dropped: frozenset[str] = frozenset()
) -> Problem:
    """The budget as a knapsack, but for the damages, where the linears with the addresses ``dropped`` are gone.

    Raises UserError as ``budget_plan`` does.
    """
    _check_candidates(spec, method)
    parts = tuple(_parts(spec, inventory, dropped))
    if spec.exchange is not None and not all(module.layer for part in parts for module in part.modules):
        raise UserError("plan.budget.exchange: plans are measured with embedding and head as they are; don't pin them")
    costs = _costs(spec, inventory, parts)
    return Problem(parts, costs, limit_in(spec, inventory, _named(parts), _extremes(spec, inventory) or costs))


def _costs(spec: BudgetSpec, inventory: Decoder, parts: Sequence[Part]) -> tuple[tuple[int, ...], ...]:
    size = sizer(spec, inventory)
    return tuple(
        tuple(sum(size(choice, module) for module in part.modules) for choice in part.choices) for part in parts
    )


def _extremes(spec: BudgetSpec, inventory: Decoder) -> list[tuple[int, int]]:
    """The smallest and the largest plan where experts may be dropped; empty where they may not."""
    if DROPPED not in spec.candidates:
        return []
    *_, fewest = droppings(inventory, pinned_choices(spec, inventory))
    least = sum(map(min, _costs(spec, inventory, _parts(spec, inventory, fewest.dropped))))
    return [(least, sum(map(max, _costs(spec, inventory, _parts(spec, inventory)))))]


def reach(spec: BudgetSpec, inventory: Decoder) -> tuple[str, str]:
    """The smallest and the largest size that can be asked for, in the spec's measure; its own size doesn't matter.

    Raises UserError for pins that match nothing or fight.
    """
    parts = _parts(spec, inventory)
    costs = _extremes(spec, inventory) or _costs(spec, inventory, parts)
    _, told = sizes(spec, inventory, _named(parts))
    return told(sum(map(min, costs))), told(sum(map(max, costs)))


def _named(parts: Sequence[Part]) -> set[str]:
    """Addresses of what gets a choice."""
    return {module.address for part in parts for module in part.modules}


def _check_candidates(spec: BudgetSpec, method: Method) -> None:
    for choice in (*spec.candidates, *spec.pin.values()):
        problem = choice.treatment(method).problem()
        if problem:
            raise UserError(f"plan.budget: candidate {choice}: {problem}")


def _parts(spec: BudgetSpec, inventory: Decoder, dropped: Container[str] = ()) -> list[Part]:
    """Units in the model's order, without ``dropped`` modules; pinned ones have one choice. A tied group that is pinned
    in part is an error."""
    pinned = pinned_choices(spec, inventory)
    parts = []
    for whole in _groups(spec, inventory, pinned):
        group = tuple(module for module in whole if module.address not in dropped)
        if not group:
            continue
        wanted = {pinned.get(module.address) for module in group}
        if len(wanted) > 1:
            named = ", ".join(module.label for module in group)
            raise UserError(f"plan.budget.pin: {named} are tied and get one format; pin all of them or none")
        pin = wanted.pop()
        parts.append(Part(group, spec.choices if pin is None else (pin,)))
    return parts


def pinned_choices(spec: BudgetSpec, inventory: Decoder) -> dict[str, Choice]:
    """Address -> what the module is pinned to. Raises UserError for pins that match nothing or fight."""
    pinned: dict[str, Choice] = {}
    for modules, choice in pins(spec, inventory):
        for module in modules:
            if pinned.setdefault(module.address, choice) != choice:
                raise UserError(f"plan.budget.pin: {module.label} is pinned to {pinned[module.address]} and {choice}")
    return pinned


def pins(spec: BudgetSpec, inventory: Decoder) -> list[tuple[list[Linear], Choice]]:
    """What is pinned, and to what. Raises UserError for selectors that match nothing."""
    found = []
    for selector, choice in spec.pin.items():
        try:
            found.append((select(inventory.linears, selector, inventory.outside_named), choice))
        except UserError as problem:
            raise UserError(f"plan.budget.pin: {problem}") from None
    return found


def _groups(spec: BudgetSpec, inventory: Decoder, pinned: Container[str]) -> Iterator[tuple[Linear, ...]]:
    """Modules that get one choice, in the order of their first members; what is outside the blocks behind them, where
    it is allocated or pinned."""
    if spec.tie == "fused":
        yield from inventory.fused
    else:
        yield from ((module,) for module in inventory.linears)
    allocated = {inventory.outside_named[name] for name in spec.outside}
    yield from ((module,) for module in inventory.outside if module in allocated or module.address in pinned)


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
    table.total(max(row) for row in damages)  # what the solver adds up
    return damages if spec.allocation == "optimal" else controls.inverted(sizes, choices, damages)


def damages_of(parts: Sequence[Part], table: Sensitivity) -> list[tuple[float, ...]]:
    """(parts, choices) damage: the sum over a part's modules; of what has no choice none, scored or not.

    Raises UserError as the table does.
    """
    return [
        tuple(table.total(table.damage(module.address, choice) for module in part.modules) for choice in part.choices)
        if len(part.choices) > 1
        else (0.0,)
        for part in parts
    ]


def importance_table(
    importance: Importance | None, spec: BudgetSpec, inventory: Decoder, model: str, method: Method
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
