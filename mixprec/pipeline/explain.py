"""What a recipe's variants come to, before any weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixprec import modules
from mixprec.models import conversion
from mixprec.models.config import load_config
from mixprec.pipeline import loadable
from mixprec.pipeline.plans import identity_here, table_for
from mixprec.plan import bits
from mixprec.plan.relative import Importance
from mixprec.plan.rules import build_plan, needs_importance, needs_spectra, tables_wanted
from mixprec.recipe import Recipe


@conversion.without_converting()
def explain(
    chosen: Recipe, importance: Importance | None, scores: Sequence[Path] | None = None
) -> dict[str, dict[str, Any]]:
    """Per variant what its plan comes to, without weights; None for one that is known only when it runs.

    ``scores``: tables for budgets, in the place of those that the recipe names.
    """
    config = load_config(chosen.model.id, chosen.model.revision)
    loadable.check_model(chosen, planned=True)
    inventory = modules.inventory(config)
    form = chosen.checkpoint.written
    rows: dict[str, dict[str, Any]] = {}
    loadable.check_parts(chosen, inventory)
    for name, variant in chosen.all_variants.items():
        table = table_for(variant.plan, inventory, lambda: identity_here(chosen.model), scores)
        waits = bool(tables_wanted(variant.plan)) and table is None
        if waits or (needs_importance(variant.plan) and importance is None) or needs_spectra(variant.plan):
            rows[name] = {"description": variant.description, "account": None}
            continue
        plan = build_plan(
            variant.plan,
            inventory,
            chosen.model.id,
            chosen.compress.method,
            importance,
            table=table,
            file_size=lambda made: form.bytes(made, inventory, config),
        )
        loadable.check_variant(chosen, name, plan, inventory, config)
        rows[name] = {
            "description": variant.description,
            "account": asdict(bits.account(plan, inventory)),
            "bytes_on_disk": form.bytes(plan, inventory, config),
        }
    return rows
