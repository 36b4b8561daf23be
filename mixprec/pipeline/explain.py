"""What a recipe's variants come to, before any weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixprec.models import conversion
from mixprec.pipeline.checks import Checked, checked
from mixprec.plan.relative import Importance
from mixprec.recipe import Recipe


def explain(
    chosen: Recipe, importance: Importance | None, scores: Sequence[Path] | None = None
) -> dict[str, dict[str, Any]]:
    """Per variant what its plan comes to, without weights; None for one that is known only when it runs.

    ``scores``: tables for budgets, in the place of those that the recipe names.
    Raises UserError with everything that is wrong with the recipe.
    """
    found = checked(chosen, importance=importance, tables=scores)
    found.require("")
    return rows(chosen, found)


@conversion.without_converting()
def rows(chosen: Recipe, found: Checked) -> dict[str, dict[str, Any]]:
    """Per variant what its plan comes to; None for one that is known only when it runs."""
    assert found.model is not None
    made: dict[str, dict[str, Any]] = {}
    for name, variant in chosen.all_variants.items():
        plan = found.plans.get(name)
        made[name] = {"description": variant.description, "account": None}
        if plan is not None:
            made[name] |= {
                "account": found.account(name),
                "bytes_on_disk": found.file_bytes(chosen, name),
            }
    return made
