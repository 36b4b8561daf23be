"""From scores to a plan: sensitivity, plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixprec.api.arguments import checked, given
from mixprec.api.checking import AnyModel, calibration_for, model_of
from mixprec.api.folders import folder_for
from mixprec.checkpoint.formats import checkpoint_format
from mixprec.compress.options import SolveOptions
from mixprec.core.arguments import check_fields, typed
from mixprec.core.errors import UserError
from mixprec.core.progress import OnStep, telling
from mixprec.models.model import Model
from mixprec.plan import sensitivity as tables
from mixprec.plan.budgetspec import MEASURES
from mixprec.plan.rules import PlanSpec, build_plan, needs_importance, needs_spectra
from mixprec.results.calibration import Calibration
from mixprec.results.importance import Importance
from mixprec.results.plan import Plan
from mixprec.results.scores import Scores
from mixprec.results.spans import Spans
from mixprec.sensitivity import run as scoring
from mixprec.sensitivity.spec import SensitivitySpec


@typed()
def sensitivity(
    model: AnyModel,
    calibration: Calibration,
    formats: Iterable[str],
    *,
    method: str = "gptq",
    scorer: str = "fisher",
    at: str = "original",
    base: str | None = None,
    samples: int | None = None,
    behaviours: Sequence[str] = (),
    traces: Spans | None = None,
    importance: Importance | None = None,
    options: SolveOptions | None = None,
    outside: Sequence[str] = (),
    out: str | Path | None = None,
    progress: OnStep | None = None,
) -> Scores:
    """Predict, or measure (``scorer`` measured), what each module costs in each of ``formats``, made by ``method``.

    ``at``: gradients at the original, path or compressed model, with ``base``, the format that all modules are in
    there. ``samples``: passages that damage is predicted on, default 8. ``behaviours``: a table for the spans of each
    in ``traces`` too. ``importance``: for the scorer importance. ``outside``: embedding, head: measured too, whatever
    the ``scorer``. ``out``: a folder for the tables, the candidates and what a killed call goes on from; by default
    nothing stays.

    Raises UserError for unknown scorers, and formats that the method can't make.
    """
    model = model_of(model)
    calibration_for(model, calibration)
    more = given(base=base, samples=samples)
    asked = {"scorer": scorer, "formats": list(formats), "at": at, "behaviours": list(behaviours), "method": method}
    asked |= {"outside": list(outside)}
    spec = checked(SensitivitySpec, "sensitivity", **asked, **more)
    assert spec.method is not None
    with telling(progress), folder_for(out) as folder:
        subject = scoring.Subject(
            model.on_one_device,
            spec.method,
            calibration,
            folder,
            options=options or SolveOptions(),
            traces=list(traces or ()),
            importance=importance.data if importance else None,
            outside=spec.outside,
        )
        return Scores(scoring.score(subject, spec))


@dataclass(frozen=True)
class Budget:
    """How large a plan may be, in one of the sizes, and what decides within it (docs/allocation.md).

    ``scores``: from ``sensitivity``, or an Importance. ``candidates``: formats to choose from, by default those that
    were scored, and keep. ``tie``: fused gives q, k, v one format, and gate and up. ``pin``: selector -> format,
    whatever the scores say. ``outside``: embedding, head: they get candidates too, in bytes or file_bytes. ``weights``:
    target of the scores -> weight. ``allocation``: optimal, or a control of the same size.
    """

    effective_bits: float | None = None
    active_bits: float | None = None
    code_bits: float | None = None
    bytes: int | None = None
    file_bytes: int | None = None
    sparsity: float | None = None
    scores: Scores | Importance | None = field(default=None, repr=False)
    candidates: Sequence[str] = ()
    tie: str | None = None
    pin: Mapping[str, str] = field(default_factory=dict)
    outside: Sequence[str] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    allocation: str = "optimal"
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)

    def spec(self) -> dict[str, Any]:
        """``plan.budget`` of a recipe. Raises UserError where nothing says what to choose from."""
        sizes = {name: getattr(self, name) for name in MEASURES}
        candidates = list(self.candidates)
        if not candidates and isinstance(self.scores, Scores):
            candidates = list(dict.fromkeys([*self.scores.formats, "keep"]))
        if not candidates:
            raise UserError("Budget: no candidates; name formats to choose from, such as ['w3g64', 'w4g64', 'keep']")
        source = {"scores": "importance"} if isinstance(self.scores, Importance) else {}
        chosen = {"tie": self.tie, "pin": dict(self.pin), "outside": list(self.outside), "weights": dict(self.weights)}
        return {**sizes, "candidates": candidates, "allocation": self.allocation, "seed": self.seed, **chosen, **source}


@typed()
def plan(
    model: AnyModel,
    what: Budget | str | Mapping[str, Any],
    *,
    keep: Sequence[str] = (),
    method: str | None = None,
    importance: Importance | None = None,
    format: str = "dense",
) -> Plan:
    """Every linear module of ``model`` with its format.

    ``what``: a Budget to spend; a format for all modules but those that ``keep`` selects (last_mlp, 32_up, ``*_gate``);
    or ``plan:`` of a recipe (docs/recipes.md). ``method``: who compresses, by default the one that was scored, else
    rtn. ``importance``: for rules that rank modules. ``format``: of the checkpoint, for a budget of file_bytes.

    Raises UserError for selectors that match nothing, budgets out of reach, scores of another model or method.
    """
    model = model_of(model)
    budget, scores = None, None
    words: dict[str, Any] = {}
    if isinstance(what, Budget):
        budget, scores, words = what, what.scores, {"budget": what.spec()}
    else:
        rules = [{"match": list(keep), "format": "keep"}] if keep else []
        words = {"default": what, "rules": rules} if isinstance(what, str) else dict(what)
    by = method or (scores.method if isinstance(scores, Scores) else None)
    spec = checked(PlanSpec, "plan", **{**words, **given(method=by)})
    if needs_spectra(spec):
        raise UserError("plan: AlphaPruning reads the model's weights; write it as a recipe and run that")
    known = scores if isinstance(scores, Importance) else importance
    if needs_importance(spec) and known is None:
        raise UserError("plan: its rules rank modules by importance; give importance=attribute(model, spans)")
    written = checkpoint_format(format)
    made = build_plan(
        spec,
        model.decoder,
        model.id,
        "rtn",
        known.scores if known else None,
        table=_table(model, scores, budget) if isinstance(scores, Scores) and budget else None,
        file_size=lambda found: written.bytes(found, model.decoder, model.config),
    )
    return Plan(model, made)


def _table(model: Model, scores: Scores, budget: Budget) -> tables.Sensitivity:
    """The targets of ``scores`` weighed into one table."""
    for table in scores.by_target.values():
        tables.check(table, model.decoder, model.identity, "scores")
    return tables.combine(scores.by_target.values(), budget.weights)
