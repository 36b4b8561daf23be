"""Exchange steps on the real KL: a surrogate proposes joint plans, a measurement of the whole plan decides.

Two kinds of proposals take turns until none helps: the solver's plan for the changes that gradients at the current plan
predict, with a price on leaving that plan which rises while proposals are refused; and exchanges of a part or two
within the budget, the most promising first. A plan is accepted where its KL on the measured passages is lower by more
than ``margin`` standard errors of the paired difference. Every measurement is a line on disk: a killed search, started
again, takes the same steps without measuring twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mixprec.core import artifacts
from mixprec.joint.assembled import Assembled, Kl
from mixprec.joint.linear import changes
from mixprec.plan.budget import Problem
from mixprec.plan.budgetspec import ExchangeSpec
from mixprec.plan.knapsack import solve
from mixprec.plan.sensitivity import Choice, Sensitivity

#: address -> candidate -> slope, for the plan with these choices.
Slopes = Callable[[Mapping[str, Choice]], Mapping[str, Mapping[str, float]]]
#: Refusals of the solver's proposals before single exchanges have their turn.
_REFUSALS = 4
#: Moves of one direction that exchanges are made of.
_MOVES = 600

Chosen = tuple[int, ...]


class Step(NamedTuple):
    """One measured proposal. ``changed``: labels of the modules that it changes; ``predicted``: by how many nats."""

    kind: str
    changed: int
    predicted: float
    kl: float
    accepted: bool


class Exchanged(NamedTuple):
    """``chosen``: the best plan found; ``stopped``: why the search ended."""

    chosen: Chosen
    start: Kl
    end: Kl
    steps: tuple[Step, ...]
    stopped: str


class Journal:
    """KLs of plans by their choices, from a file or measured; the model is assembled when the first one is."""

    def __init__(self, path: Path, stamp: str, problem: Problem, assemble: Callable[[], Assembled]) -> None:
        self._path, self._stamp, self._problem, self._assemble = path, stamp, problem, assemble
        self._model: Assembled | None = None
        self._at: Chosen | None = None
        self._known: dict[Chosen, Kl] = {}
        for row in artifacts.rows_left(path, stamp):
            with suppress(KeyError, TypeError, ValueError):  # none of ours
                kl = Kl(*(torch.tensor(row[name], dtype=torch.float64) for name in Kl._fields))
                self._known[tuple(row["chosen"])] = kl

    def knows(self, chosen: Chosen) -> bool:
        """Whether a plan was measured already."""
        return chosen in self._known

    def kl(self, chosen: Chosen, base: Chosen) -> Kl:
        """Of the plan ``chosen``, which differs from ``base`` in few parts."""
        if chosen not in self._known:
            if self._model is None:
                self._model = self._assemble()
            if self._at != base:
                self._model.put(self._difference(base, self._at))
                self._at = base
            found = self._model.try_out(self._difference(chosen, base)) if chosen != base else self._model.now()
            row = {"stamp": self._stamp, "chosen": chosen, **{k: v.tolist() for k, v in found._asdict().items()}}
            artifacts.append_row(self._path, row)
            self._known[chosen] = found
        return self._known[chosen]

    def _difference(self, chosen: Chosen, base: Chosen | None) -> dict[str, Choice]:
        wanted = self._problem.choices(chosen)
        if base is None:
            return wanted
        before = self._problem.choices(base)
        return {address: choice for address, choice in wanted.items() if choice != before[address]}


def exchange(
    problem: Problem,
    start: Sequence[int],
    journal: Journal,
    slopes: Slopes,
    fisher: Sensitivity,
    spec: ExchangeSpec,
    advance: Callable[[int], None] = lambda _: None,
) -> Exchanged:
    """Better plans of the same budget, from ``start`` (parts,) on, until no proposal helps or ``spec`` says stop."""
    search = _Search(problem, tuple(start), journal, slopes, fisher, spec, advance)
    try:
        while search.resolve() | search.trade():
            pass
        stopped = "no exchange helps"
    except _Enough as reason:
        stopped = str(reason)
    return Exchanged(search.chosen, search.first, search.kl, tuple(search.steps), stopped)


class _Enough(Exception):
    """The limit of proposals or of time."""


class _Search:
    def __init__(
        self,
        problem: Problem,
        start: Chosen,
        journal: Journal,
        slopes: Slopes,
        fisher: Sensitivity,
        spec: ExchangeSpec,
        advance: Callable[[int], None],
    ) -> None:
        self._problem, self._journal, self._slopes, self._fisher = problem, journal, slopes, fisher
        self._spec, self._advance, self._began = spec, advance, time.monotonic()
        self._sizes = [sum(module.weights for module in part.modules) for part in problem.parts]
        self.chosen = start
        self.first = self.kl = journal.kl(start, start)
        self.steps: list[Step] = []
        self._price = 0.0

    def resolve(self) -> bool:
        """Plans of the solver with gradients at the current plan; whether one was accepted."""
        accepted, refused = False, 0
        delta = self._predict()
        while refused < _REFUSALS:
            proposal = self._solved(delta)
            if proposal == self.chosen:
                break
            predicted = sum(row[index] for row, index in zip(delta, proposal, strict=True))
            moved = sum(s for s, a, b in zip(self._sizes, proposal, self.chosen, strict=True) if a != b)
            if self._propose("solver", proposal, predicted):
                accepted, refused, self._price = True, 0, self._price / 2
                delta = self._predict()
            else:
                refused += 1
                # So that what was predicted would have paid for half of the weights that moved.
                self._price = max(3 * self._price, -predicted / moved, 0.0) or 1e-12
        return accepted

    def trade(self) -> bool:
        """Exchanges of a part or two, until ``spec.patience`` of them in a row were refused."""
        accepted, refused = False, 0
        delta = self._predict()
        while refused < self._spec.patience:
            for predicted, proposal in exchanges(self._problem, self.chosen, delta):
                if self._propose("exchange", proposal, predicted):
                    accepted, refused = True, 0
                    delta = changes(self._problem, self.chosen, self._last, self._fisher)
                    break
                refused += 1
                if refused >= self._spec.patience:
                    break
            else:
                break
        return accepted

    def _predict(self) -> list[list[float]]:
        self._check_time()
        self._last = self._slopes(self._problem.choices(self.chosen))
        return changes(self._problem, self.chosen, self._last, self._fisher)

    def _solved(self, delta: Sequence[Sequence[float]]) -> Chosen:
        damages = []
        for row, now, size in zip(delta, self.chosen, self._sizes, strict=True):
            priced = [value + (self._price * size if index != now else 0.0) for index, value in enumerate(row)]
            damages.append(
                [value - min(priced) for value in priced]
            )  # damage is at least 0; a constant changes nothing
        return tuple(solve(self._problem.units(damages), self._problem.limit))

    def _propose(self, kind: str, proposal: Chosen, predicted: float) -> bool:
        if len(self.steps) >= self._spec.proposals:
            raise _Enough(f"{self._spec.proposals} proposals")
        if not self._journal.knows(proposal):
            self._check_time()
        found = self._journal.kl(proposal, self.chosen)
        gain, error = found.better_by(self.kl)
        accepted = gain > self._spec.margin * error and gain > 0
        changed = sum(
            len(p.modules) for p, a, b in zip(self._problem.parts, proposal, self.chosen, strict=True) if a != b
        )
        self.steps.append(Step(kind, changed, predicted, found.mean, accepted))
        self._advance(1)
        if accepted:
            self.chosen, self.kl = proposal, found
        return accepted

    def _check_time(self) -> None:
        limit = self._spec.minutes
        if limit is not None and time.monotonic() - self._began > 60 * limit:
            raise _Enough(f"{limit:g} minutes")


def exchanges(problem: Problem, chosen: Chosen, delta: Sequence[Sequence[float]]) -> Iterator[tuple[float, Chosen]]:
    """(predicted change, plan) of all changes of one or two parts that keep the budget, best predictions first.

    Of larger models only the moves that are cheapest for what they change take part.
    """
    slack = problem.limit - problem.cost(chosen)
    moves = [
        (part, index, row[index] - row[now], costs[index] - costs[now])
        for part, (row, costs, now) in enumerate(zip(delta, problem.costs, chosen, strict=True))
        for index in range(len(costs))
        if index != now
    ]
    rate = lambda move: move[2] / max(abs(move[3]), 1)  # noqa: E731
    up = sorted((move for move in moves if move[3] > 0), key=rate)[:_MOVES]
    down = sorted((move for move in moves if move[3] <= 0), key=rate)[:_MOVES]
    found: list[tuple[float, tuple[tuple[int, int], ...]]] = [
        (move[2], ((move[0], move[1]),)) for move in (*up, *down) if move[3] <= slack
    ]
    if up and down:
        gain = np.array([move[2] for move in up])[:, None] + np.array([move[2] for move in down])
        more = np.array([move[3] for move in up])[:, None] + np.array([move[3] for move in down])
        other = np.array([move[0] for move in up])[:, None] != np.array([move[0] for move in down])
        rows, columns = np.nonzero((more <= slack) & other)
        order = np.argsort(gain[rows, columns], kind="stable")[: 4 * _MOVES]
        found += [
            (float(gain[i, j]), ((up[i][0], up[i][1]), (down[j][0], down[j][1])))
            for i, j in zip(rows[order].tolist(), columns[order].tolist(), strict=True)
        ]
    for predicted, steps in sorted(found):
        plan = list(chosen)
        for part, index in steps:
            plan[part] = index
        yield predicted, tuple(plan)


def described(found: Exchanged) -> dict[str, Any]:
    """What exchange.json holds."""
    gain, error = found.end.better_by(found.start)
    return {
        "kl_start": found.start.mean,
        "kl_end": found.end.mean,
        "gain": gain,
        "gain_standard_error": error,
        "stopped": found.stopped,
        "steps": [step._asdict() for step in found.steps],
    }
