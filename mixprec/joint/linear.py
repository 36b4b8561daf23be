"""What single changes of a joint plan would do, from gradients of the KL at that plan's own model.

Near the plan the KL is taken as a quadratic form in the errors of all modules. At the plan's model, module m's error
has the slope s_m(c) = Σ_t g_tᵀ ΔW_c x_t towards the error ΔW_c of choice c, in which the errors of all other modules
act together with it; the form's diagonal is the Fisher score F_m(c) of a single module (half the expected square). With
errors of different choices taken as unrelated, going from c₀ to c changes the KL by

    s_m(c) − s_m(c₀) + F_m(c) + F_m(c₀).

One sweep serves all modules and choices; scores at the original model have the last two terms only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mixprec.compress.candidatefiles import Candidates
from mixprec.plan.budget import Problem
from mixprec.plan.sensitivity import Choice, Sensitivity
from mixprec.sensitivity.passages import Scored, counted
from mixprec.sensitivity.spec import TOGETHER
from mixprec.sensitivity.sweep import State, sweep
from mixprec.walk import blocks
from mixprec.walk.losses import Row

#: Name of the plan's own weights among the candidates.
_PLAN = "plan"


class _Planned(Candidates):
    """Candidates, and the weights that a plan chooses among them, as one more by the name of ``plan``."""

    def __init__(self, candidates: Candidates, choices: Mapping[str, Choice]) -> None:
        super().__init__(candidates.folder, candidates.names, candidates.digest)
        self._choices = choices

    def block(self, layer: int, names: Sequence[str] | None = None) -> dict[str, dict[str, Tensor]]:
        if names is None or _PLAN not in names:
            return super().block(layer, names)
        # Modules that the plan keeps aren't named: they stay as they are.
        found = super().block(layer).items()
        return {a: {_PLAN: rows[str(self._choices[a])]} for a, rows in found if self._choices[a].changes}


def slopes(
    opened: blocks.Blocks,
    candidates: Candidates,
    choices: Mapping[str, Choice],
    passages: Sequence[Scored],
    weights: Mapping[str, float],
) -> dict[str, dict[str, float]]:
    """Address -> candidate -> s(c) in nats per token, at the model of the plan ``choices`` (address -> choice, all).

    ``weights``: target -> what its KL counts; they are taken relative to their sum.
    """
    rows = [Row("kl", target) for target in weights]
    planned, state = _Planned(candidates, choices), State(_PLAN, 1.0)
    whole = sum(weights.values())
    shares = torch.tensor([weights[t] / whole / counted(passages, t) for t in weights], dtype=torch.float64)
    found: dict[str, Tensor] = {}
    for start in range(0, len(passages), TOGETHER):
        for sums in sweep(opened, planned, passages[start : start + TOGETHER], rows, state):
            for address, each in sums.items():
                found[address] = found.get(address, torch.zeros(len(candidates.names))) + shares @ each.slope
    return {a: dict(zip(candidates.names, row.tolist(), strict=True)) for a, row in found.items()}


def changes(
    problem: Problem,
    chosen: Sequence[int],
    slope: Mapping[str, Mapping[str, float]],
    fisher: Sensitivity,
) -> list[list[float]]:
    """(parts, choices) predicted change of the KL from the plan ``chosen`` by giving a part another choice; 0 for its
    own."""
    found = []
    for part, now in zip(problem.parts, chosen, strict=True):
        row = []
        for choice in part.choices:
            total = 0.0
            if choice != part.choices[now]:
                for module in part.modules:
                    steps = slope[module.address]
                    total += steps.get(str(choice), 0.0) - steps.get(str(part.choices[now]), 0.0)
                    total += fisher.damage(module.address, choice)
                    total += fisher.damage(module.address, part.choices[now])
            row.append(total)
        found.append(row)
    return found
