"""A budget's plan improved by exchange: the model, its candidates and its passages brought together.

Folder::

    start.json         the plan that the search starts from
    measured.jsonl     KL of every joint plan that was measured
    slopes/            gradients at the plans that were accepted
    exchange.json      the steps, and what they came to
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from mixprec.compress.candidatefiles import Candidates
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.core.progress import bar
from mixprec.joint import RULES
from mixprec.joint.assembled import Assembled
from mixprec.joint.exchange import Exchanged, Journal, described, exchange
from mixprec.joint.linear import slopes
from mixprec.numerics.formats import fitting
from mixprec.plan import sensitivity
from mixprec.plan.budget import Problem, as_plan, budget_problem, damages_of
from mixprec.plan.budgetspec import BudgetSpec
from mixprec.plan.knapsack import solve
from mixprec.plan.methods import Method
from mixprec.plan.schema import Plan, save_plan
from mixprec.plan.sensitivity import ALL, Choice, Sensitivity
from mixprec.sensitivity import RULES as SCORING_RULES
from mixprec.sensitivity.passages import Scored
from mixprec.sensitivity.run import Subject
from mixprec.sensitivity.spec import SensitivitySpec

#: Scorers whose plans are measured as starts, besides the one that the budget names.
_STARTS = ("fisher", "first_order", "gradient_output", "output_error")


def improve(
    subject: Subject,
    scoring: SensitivitySpec,
    candidates: Candidates,
    budget: BudgetSpec,
    plan: Plan,
    folder: Path,
) -> Plan:
    """``plan`` or a better one of the same ``budget``; ``folder`` gets what was measured: a killed run continues.

    ``candidates`` hold every choice of the budget. The search starts from ``plan`` or from the solver's plan for
    another scorer whose tables are there, whichever has the lower measured KL. Plans are measured on the passages
    behind those that ``scoring`` takes, so that nothing is judged on what proposed it. Raises UserError for too few
    passages.
    """
    spec = budget.exchange
    assert spec is not None
    weights = budget.weights or {ALL: 1.0}
    problem = budget_problem(budget, subject.model.decoder, plan.method)
    passages = subject.scored(scoring.model_copy(update={"samples": scoring.samples + spec.samples}))
    seen, measured = passages[: scoring.samples], passages[scoring.samples :]
    if len(measured) < 2:
        raise UserError(
            f"plan.budget.exchange: {len(passages)} passages are there, {scoring.samples} of them are scored "
            "(sensitivity.samples), and plans are measured on at least two others; take more calibration samples or "
            "traces"
        )
    table = _fisher(subject, weights)
    stamp = artifacts.fingerprint(
        [RULES, SCORING_RULES],
        candidates.digest,
        [[each.tokens.tolist(), {t: each.weights[t].tolist() for t in weights}] for each in passages],
        [len(seen), spec.stride, dict(weights), subject.model.dtype, subject.model.device],
        budget.model_dump(mode="json", include={"candidates", "tie", "pin"}),
    )

    def assemble() -> Assembled:
        made = Assembled(subject.model.load(), candidates, measured, weights, spec.stride)
        return stack.enter_context(closing(made))

    with ExitStack() as stack:  # closing it gives the model its own weights back
        journal = Journal(folder / "measured.jsonl", stamp, problem, assemble)
        cached = _Slopes(subject, candidates, seen, weights, folder / "slopes", stamp)
        starts = {_start(problem, plan): None, **dict.fromkeys(_others(subject, problem, weights, plan.method))}
        start = min(starts, key=lambda chosen: journal.kl(chosen, chosen).mean)
        save_plan(folder / "start.json", _planned(problem, start, budget, subject, plan, "start of the exchange"))
        with bar("exchange", spec.proposals, "plans") as advance:
            found = exchange(problem, start, journal, cached, table, spec, advance)
    artifacts.write_json(folder / "exchange.json", described(found))
    return _planned(problem, found.chosen, budget, subject, plan, _why(found))


def _planned(
    problem: Problem, chosen: Sequence[int], budget: BudgetSpec, subject: Subject, like: Plan, why: str
) -> Plan:
    return as_plan(problem.choices(chosen), budget, subject.model.decoder, like.model, like.method, why)


def _others(subject: Subject, problem: Problem, weights: Mapping[str, float], method: Method) -> list[tuple[int, ...]]:
    """The solver's plans for the scorers that the sweep left tables of."""
    found = []
    for scorer in _STARTS:
        paths = [subject.folder / sensitivity.file_name(scorer, target) for target in weights]
        if not all(path.is_file() for path in paths):
            continue
        tables = [sensitivity.load(path, subject.model.decoder, subject.model.identity) for path in paths]
        table = sensitivity.combine(tables, weights)
        if table.method == method:
            found.append(tuple(solve(problem.units(damages_of(problem.parts, table)), problem.limit)))
    return found


def _why(found: Exchanged) -> str:
    accepted = sum(step.accepted for step in found.steps)
    return f"exchange, {accepted} of {len(found.steps)} proposals"


def _start(problem: Problem, plan: Plan) -> tuple[int, ...]:
    """The numbers of the plan's choices; a type of llama.cpp stands in the plan as what fits."""
    found = []
    for part in problem.parts:
        module = part.modules[0]
        made = [(fitting(choice.format, module.in_features), choice.sparsity) for choice in part.choices]
        here = plan.modules[module.address]
        found.append(made.index((here.format, here.sparsity)))
    return tuple(found)


def _fisher(subject: Subject, weights: Mapping[str, float]) -> Sensitivity:
    """The Fisher scores that the sweep left, the targets weighed relative to the weights' sum."""
    paths = [subject.folder / sensitivity.file_name("fisher", target) for target in weights]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"plan.budget.exchange: {subject.folder / missing[0]} is not there; it needs sensitivity with scorer "
            "fisher or first_order and gradients own, for each target of the weights"
        )
    tables = [sensitivity.load(path, subject.model.decoder, subject.model.identity) for path in paths]
    whole = sum(weights.values())
    return sensitivity.combine(tables, {target: weight / whole for target, weight in weights.items()})


class _Slopes:
    """Slopes at plans, each computed once and kept in a file."""

    def __init__(
        self,
        subject: Subject,
        candidates: Candidates,
        passages: Sequence[Scored],
        weights: Mapping[str, float],
        folder: Path,
        stamp: str,
    ) -> None:
        self._subject, self._candidates, self._passages = subject, candidates, passages
        self._weights, self._folder, self._stamp = weights, folder, stamp

    def __call__(self, choices: Mapping[str, Choice]) -> Mapping[str, Mapping[str, float]]:
        name = artifacts.fingerprint(self._stamp, {address: str(choice) for address, choice in choices.items()})
        path = self._folder / f"{name[:16]}.json"
        if not path.is_file():
            opened = self._subject.model.open_blocks()
            artifacts.write_json(path, slopes(opened, self._candidates, choices, self._passages, self._weights))
        found: dict[str, dict[str, float]] = artifacts.read_json(path)
        return found
