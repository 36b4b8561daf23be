"""From a recipe's words to a variant's plan, with the scores that its rules rank by and its budget is spent by."""

from __future__ import annotations

from typing import Any

from mixprec.core.errors import within
from mixprec.importance import artifact
from mixprec.joint import RULES
from mixprec.joint import run as joint
from mixprec.pipeline import damage
from mixprec.pipeline.context import Context
from mixprec.pipeline.tables import table_for
from mixprec.plan import sensitivity
from mixprec.plan.budgetspec import SENSITIVITY
from mixprec.plan.rules import PlanSpec, build_plan, needs_importance, needs_spectra, tables_wanted
from mixprec.plan.schema import Plan, load_plan, save_plan
from mixprec.plan.sensitivity import Sensitivity


def plan_of(run: Context, name: str, spec: PlanSpec, importance: dict[str, Any] | None, scored: str | None) -> Plan:
    """A variant's plan; where its budget says so, improved by measuring joint plans.

    ``importance``: importance.json. ``scored``: the fingerprint of the recipe's sensitivity.
    Raises UserError naming the variant.
    """
    with within(f"variant {name}"):
        return _whole(run, _plan_of(run, name, spec, importance, scored))


def _whole(run: Context, plan: Plan) -> Plan:
    """With what the recipe's checkpoint says of embedding and head."""
    return run.recipe.checkpoint.whole(plan, run.model.decoder)


def _plan_of(run: Context, name: str, spec: PlanSpec, importance: dict[str, Any] | None, scored: str | None) -> Plan:
    plan = build_plan(
        spec,
        run.model.decoder,
        run.recipe.model.id,
        run.recipe.compress.method,
        artifact.scores_of(importance) if needs_importance(spec) and importance else None,
        run.alphas if needs_spectra(spec) else None,
        _table(run, spec),
        lambda made: run.recipe.checkpoint.written.bytes(_whole(run, made), run.model.decoder, run.model.config),
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
        RULES,
        [scored, start, spec.model_dump(mode="json")],
        [folder / "plan.json", folder / "exchange.json"],
        make,
    )
    return load_plan(folder / "plan.json", run.model.decoder)


def _table(run: Context, spec: PlanSpec) -> Sensitivity | None:
    """The scores that a budget is spent by, those of several targets weighed into one."""
    own, scored = tables_wanted(spec) == (SENSITIVITY,), run.recipe.sensitivity
    if not own or scored is None:
        return table_for(spec, run.model.decoder, lambda: run.model.identity)
    folder = run.out / "sensitivity"
    paths = [folder / sensitivity.file_name(scored.scorer, target) for target in ("all", *scored.behaviours)]
    return table_for(spec, run.model.decoder, lambda: run.model.identity, paths)
