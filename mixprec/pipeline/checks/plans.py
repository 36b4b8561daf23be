"""The plans of a recipe: those that are known are made; of the others, what is wrong whatever the scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixprec.core.errors import UserError
from mixprec.pipeline import loadable
from mixprec.pipeline.checks.findings import Findings
from mixprec.pipeline.tables import identity_here, table_for
from mixprec.plan.budget import Problem, as_plan, check_reach, importance_table, pinned_choices
from mixprec.plan.budgetspec import IMPORTANCE, SENSITIVITY, BudgetSpec
from mixprec.plan.methods import Method
from mixprec.plan.relative import Importance
from mixprec.plan.rules import (
    PlanSpec,
    build_plan,
    may_rank,
    needs_importance,
    needs_spectra,
    rule_problems,
    tables_wanted,
    unranked,
    without_ranking,
)
from mixprec.plan.schema import Plan
from mixprec.plan.sensitivity import ALL
from mixprec.recipe import Recipe
from mixprec.sensitivity.sets import cells_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from mixprec.models.model import Model


class Plans:
    """Makes and checks the plans of one recipe. ``importance`` and ``tables`` stand for what stages would make."""

    def __init__(
        self,
        chosen: Recipe,
        model: Model,
        found: Findings,
        importance: Importance | None = None,
        tables: Sequence[Path] | None = None,
    ) -> None:
        self.chosen, self.model, self.inventory, self.found = chosen, model, model.decoder, found
        self.importance, self.tables = importance, tables

    def all(self) -> dict[str, Plan | None]:
        """Variant -> its plan; None for one that is known only when it runs, or is wrong."""
        if self.chosen.ablation is not None:
            with self.found.trying("ablation"):
                cells_of(self.chosen.ablation, self.inventory)
        return {name: self._of(name, variant.plan) for name, variant in self.chosen.all_variants.items()}

    def _of(self, name: str, spec: PlanSpec) -> Plan | None:
        before, method = len(self.found.problems), spec.method or self.chosen.compress.method
        if spec.budget is not None:
            self._budget(name, spec, spec.budget, method)
        else:
            for problem in rule_problems(spec, self.inventory):
                self.found.add(problem, f"variant {name}")
        table, alphas = None, None
        with self.found.trying(f"variant {name}"):
            table = table_for(spec, self.inventory, lambda: identity_here(self.model), self.tables)
        if len(self.found.problems) > before:
            return None
        ranked = needs_importance(spec) and self.importance is None
        if (tables_wanted(spec) and table is None) or (ranked and spec.budget is not None):
            return None
        if needs_spectra(spec):
            alphas = dict.fromkeys((module.address for module in self.inventory.linears), 1.0)
        plan = None
        with self.found.trying(f"variant {name}"):
            plan = build_plan(
                without_ranking(spec) if ranked else spec,
                self.inventory,
                self.chosen.model.id,
                method,
                self.importance,
                alphas,
                table,
                self._file_size,
            )
            plan = self._whole(plan)
            self._check(name, plan, may_rank(spec, self.inventory) if ranked else frozenset())
        return None if ranked or alphas else plan

    @property
    def _config(self) -> PretrainedConfig | None:
        """Which GGUF files alone depend on."""
        return self.model.config if self.chosen.checkpoint.format == "gguf" else None

    def _file_size(self, plan: Plan) -> int:
        return self.chosen.checkpoint.written.bytes(self._whole(plan), self.inventory, self.model.config)

    def _whole(self, plan: Plan) -> Plan:
        """With what the recipe's checkpoint says of embedding and head."""
        return self.chosen.checkpoint.whole(plan, self.inventory)

    def _check(self, name: str, plan: Plan, free: set[str] | frozenset[str] = frozenset()) -> None:
        """Checkpoint, runtime and engine hold the plan, but for the modules ``free`` that may still get another format.

        Raises UserError where they don't.
        """
        if free and not loadable.refused(self.chosen, plan, self.inventory, self._config) - free:
            return
        loadable.check_variant(self.chosen, name, plan, self.inventory, self._config)
        engine = self.chosen.engine_of(self.chosen.all_variants[name])
        if engine != "mixprec" and plan.changed:
            from mixprec.contrib.peers.engine import Peer  # it needs torch

            Peer(engine, {}).request(plan, self.inventory)

    def _budget(self, name: str, spec: PlanSpec, budget: BudgetSpec, method: Method) -> None:
        """Whether a budget can be kept, and whether what it chooses from can be written and loaded."""
        with self.found.trying(f"variant {name}"):
            self._check_weights(budget, method)
        problem = None
        with self.found.trying(f"variant {name}"):
            problem = check_reach(budget, self.inventory, self.chosen.model.id, method, self._file_size)
        if problem is not None and budget.needs_scores:
            self._check_choices(name, budget, problem, method)

    def _check_weights(self, budget: BudgetSpec, method: Method) -> None:
        """The targets that ``weights`` name are those that the recipe's own stages score."""
        if budget.needs_scores and budget.scores == (IMPORTANCE,):
            known = self.importance or unranked(self.inventory)
            importance_table(known, budget, self.inventory, self.chosen.model.id, method)
        scored = self.chosen.sensitivity
        if not budget.needs_scores or budget.scores != (SENSITIVITY,) or scored is None or self.tables:
            return
        targets = (ALL, *scored.behaviours)
        if unknown := sorted(budget.weights.keys() - set(targets)):
            raise UserError(
                f"plan.budget.weights: no scores for {', '.join(unknown)}; there are {', '.join(targets)}: add "
                "behaviours to sensitivity.behaviours"
            )

    def _check_choices(self, name: str, budget: BudgetSpec, problem: Problem, method: Method) -> None:
        """Every candidate for all modules, and a plan that mixes them: refused now and not after the scoring."""
        before = len(self.found.problems)
        pinned = pinned_choices(budget, self.inventory)
        modules = [module.address for part in problem.parts for module in part.modules]
        for choice in budget.choices:
            alike = dict.fromkeys(modules, choice) | pinned
            with self.found.trying(f"variant {name}"):
                plan = self._whole(as_plan(alike, budget, self.inventory, self.chosen.model.id, method))
                try:
                    self._check(name, plan)
                except UserError as refused:
                    told = str(refused).removeprefix(f"variant {name}: ")
                    raise UserError(f"plan.budget.candidates: {choice}: {told}") from None
        if len(self.found.problems) > before:
            return
        mixed = problem.choices([number % len(part.choices) for number, part in enumerate(problem.parts)])
        with self.found.trying(f"variant {name}"):
            plan = self._whole(as_plan(mixed, budget, self.inventory, self.chosen.model.id, method))
            try:
                self._check(name, plan)
            except UserError as refused:
                told = str(refused).removeprefix(f"variant {name}: ")
                tie = "" if budget.tie else "write budget: {tie: fused}: "
                raise UserError(f"plan.budget: {tie}plans that mix its candidates are refused: {told}") from None
