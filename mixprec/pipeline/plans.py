"""From a recipe's words to a variant's plan, with the scores that its rules rank by and its budget is spent by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mixprec.core.errors import UserError
from mixprec.importance import artifact
from mixprec.joint import run as joint
from mixprec.models import locate
from mixprec.models.decoder import Decoder
from mixprec.pipeline import damage
from mixprec.pipeline.context import Context
from mixprec.plan import sensitivity
from mixprec.plan.budgetspec import SENSITIVITY
from mixprec.plan.rules import PlanSpec, build_plan, needs_importance, needs_spectra, tables_wanted
from mixprec.plan.schema import Plan, load_plan, save_plan
from mixprec.plan.sensitivity import Sensitivity
from mixprec.recipe.parts import ModelSpec


def plan_of(run: Context, name: str, spec: PlanSpec, importance: dict[str, Any] | None, scored: str | None) -> Plan:
    """A variant's plan; where its budget says so, improved by measuring joint plans.

    ``importance``: importance.json. ``scored``: the fingerprint of the recipe's sensitivity.
    """
    plan = build_plan(
        spec,
        run.inventory,
        run.recipe.model.id,
        run.recipe.compress.method,
        artifact.scores_of(importance) if needs_importance(spec) and importance else None,
        run.alphas if needs_spectra(spec) else None,
        _table(run, spec),
        lambda made: run.recipe.checkpoint.written.bytes(made, run.inventory, run.config),
    )
    scoring_spec = run.recipe.sensitivity
    if spec.budget is None or spec.budget.exchange is None or scoring_spec is None:
        return plan
    budget, folder, start = spec.budget, run.out / "variants" / name / "exchange", plan.model_dump(mode="json")
    subject = damage.subject(run, run.out / "sensitivity", importance)

    def make() -> None:
        candidates = subject.candidates(run.recipe.candidates())
        save_plan(folder / "plan.json", joint.improve(subject, scoring_spec, candidates, budget, plan, folder))

    run.stages.do(
        f"exchange/{name}",
        [scored, start, spec.model_dump(mode="json")],
        [folder / "plan.json", folder / "exchange.json"],
        make,
    )
    return load_plan(folder / "plan.json", run.inventory)


def _table(run: Context, spec: PlanSpec) -> Sensitivity | None:
    """The scores that a budget is spent by, those of several targets weighed into one."""
    own, scored = tables_wanted(spec) == (SENSITIVITY,), run.recipe.sensitivity
    if not own or scored is None:
        return table_for(spec, run.inventory, lambda: run.identity)
    folder = run.out / "sensitivity"
    paths = [folder / sensitivity.file_name(scored.scorer, target) for target in ("all", *scored.behaviours)]
    return table_for(spec, run.inventory, lambda: run.identity, paths)


def identity_here(model: ModelSpec) -> str | None:
    """locate.identity, or None for a model that can be planned for though it isn't on this machine."""
    try:
        return locate.identity(model.id, model.revision)
    except UserError:
        return None


def table_for(
    spec: PlanSpec,
    inventory: Decoder,
    identity: Callable[[], str | None],
    paths: Sequence[Path] | None = None,
) -> Sensitivity | None:
    """The tables that a budget names by their ``paths``, weighed into one; None where it needs none, or where the
    recipe's own are not there yet. ``paths`` take the place of what the budget names; ``identity``, locate.identity of
    the model, hashes its files and is asked only where there is a table to compare.

    Raises UserError for broken tables and those of another model.
    """
    wanted = [str(path) for path in paths or ()] or list(tables_wanted(spec))
    if spec.budget is None or not tables_wanted(spec) or SENSITIVITY in wanted:
        return None
    tables = [sensitivity.load(Path(path).expanduser(), inventory, identity()) for path in wanted]
    return sensitivity.combine(tables, spec.budget.weights)
