"""Before any work: whether a recipe's checkpoints can hold its plans, and the runtime that it names loads them."""

from __future__ import annotations

from pathlib import Path

from transformers import PretrainedConfig

from mixprec.checkpoint.base import check_plan
from mixprec.checkpoint.check import Target, require
from mixprec.checkpoint.opening import open_checkpoint, open_original
from mixprec.core.errors import UserError
from mixprec.models import locate
from mixprec.models.kinds import has_weights
from mixprec.modules import Inventory
from mixprec.numerics.formats import KEEP
from mixprec.plan.budget import budget_problem
from mixprec.plan.rules import PlanSpec, build_plan, needs_importance, needs_spectra, tables_wanted
from mixprec.plan.schema import Plan
from mixprec.recipe import Recipe
from mixprec.sensitivity.ablation import cells_of


def target_of(chosen: Recipe) -> Target | None:
    """The runtime that a recipe names, or None."""
    spec = chosen.checkpoint
    return None if spec.runtime is None else Target(spec.runtime, spec.format, spec.version, spec.device)


def check_model(chosen: Recipe, *, planned: bool = False) -> None:
    """The recipe's model, where it is a folder, is a whole checkpoint, and not quantized already where a variant
    compresses it; what is only ``planned`` needs no weights.

    Raises UserError as opening.open_original does. Files on the hub are looked at when they are there.
    """
    if locate.unconverted(chosen.model.id) is not None:
        return  # its header was checked when the configuration was read
    folder = Path(locate.resolve(chosen.model.id))
    if not folder.is_dir() or (planned and not has_weights(folder)):
        return
    compresses = any(_compresses(variant.plan) for variant in chosen.all_variants.values())
    try:
        open_original(folder) if compresses else open_checkpoint(folder)
    except UserError as problem:
        raise UserError(f"model.id: {str(problem).removeprefix('model.id: ')}") from None


def _compresses(plan: PlanSpec) -> bool:
    """Whether a plan may change a module."""
    return plan.default != KEEP or plan.sparsity is not None or bool(plan.rules)


def check_known(chosen: Recipe, inventory: Inventory, config: PretrainedConfig) -> None:
    """The plans that are known already, without importance, spectra or sensitivity.

    Raises UserError naming the variant.
    """
    check_parts(chosen, inventory)
    for name, variant in chosen.all_variants.items():
        spec = variant.plan
        if not needs_importance(spec) and not needs_spectra(spec) and not tables_wanted(spec):
            written = chosen.checkpoint.written
            plan = build_plan(
                spec,
                inventory,
                chosen.model.id,
                chosen.compress.method,
                file_size=lambda made, form=written: form.bytes(made, inventory, config),  # type: ignore[misc]
            )
            check_variant(chosen, name, plan, inventory, config)


def check_parts(chosen: Recipe, inventory: Inventory) -> None:
    """What waits for scores: whether any plan keeps the budgets, and whether the ablation's selectors match modules.

    Raises UserError naming the variant or the key.
    """
    for name, variant in chosen.all_variants.items():
        if variant.plan.budget is not None:
            try:
                budget_problem(variant.plan.budget, inventory, variant.plan.method or chosen.compress.method)
            except UserError as problem:
                raise UserError(f"variant {name}: {problem}") from None
    if chosen.ablation is not None:
        cells_of(chosen.ablation, inventory)


def check_variant(chosen: Recipe, name: str, plan: Plan, inventory: Inventory, config: PretrainedConfig) -> None:
    """One variant's plan.

    Raises UserError naming the variant.
    """
    if not plan.changed:
        return  # it is the original, of which nothing is written
    try:
        check_plan(chosen.checkpoint.written, plan, inventory, config)
        target = target_of(chosen)
        if target is not None:
            require(plan, inventory, config, target)
    except UserError as problem:
        raise UserError(f"variant {name}: {problem}") from None
