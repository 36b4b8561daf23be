"""The tables of scores that budgets are spent by, as files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mixprec.core.errors import UserError
from mixprec.models.decoder import Decoder
from mixprec.models.model import Model
from mixprec.plan import sensitivity
from mixprec.plan.budgetspec import SENSITIVITY
from mixprec.plan.rules import PlanSpec, tables_wanted
from mixprec.plan.sensitivity import Sensitivity


def identity_here(model: Model) -> str | None:
    """The model's identity, or None for one that can be planned for though it isn't on this machine."""
    try:
        return model.identity
    except UserError:
        return None


def table_for(
    spec: PlanSpec,
    inventory: Decoder,
    identity: Callable[[], str | None],
    paths: Sequence[Path] | None = None,
) -> Sensitivity | None:
    """The tables that a budget names by their ``paths``, weighed into one; None where it needs none, or where the
    recipe's own are not there yet. ``paths`` take the place of what the budget names; ``identity``, that of
    the model, hashes its files and is asked only where there is a table to compare.

    Raises UserError for broken tables and those of another model.
    """
    wanted = [str(path) for path in paths or ()] or list(tables_wanted(spec))
    if spec.budget is None or not tables_wanted(spec) or SENSITIVITY in wanted:
        return None
    tables = [sensitivity.load(Path(path).expanduser(), inventory, identity()) for path in wanted]
    return sensitivity.combine(tables, spec.budget.weights)
