"""Joint plans: their KL against whole models, slopes against autograd, and the search that spends measurements."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from planning import Made

from mixprec.core.errors import UserError
from mixprec.evaluate import fidelity
from mixprec.evaluate.passages import Passage
from mixprec.joint.assembled import Assembled, Kl
from mixprec.joint.exchange import Exchanged, Journal, described, exchange, exchanges
from mixprec.joint.linear import changes, slopes
from mixprec.models.head import Head
from mixprec.models.load import LoadedModel
from mixprec.plan.budgetspec import ExchangeSpec
from mixprec.plan.knapsack import solve
from mixprec.plan.sensitivity import Choice


def planned(made: Made, chosen: tuple[int, ...]) -> LoadedModel:
    """The model of a plan, put together by hand."""
    loaded = made.load()
    for address, choice in made.problem.choices(chosen).items():
        loaded.linears[address].weight.data.copy_(made.candidates.weight(address, str(choice)))
    return loaded


def whole(made: Made, chosen: tuple[int, ...], target: str = "all") -> float:
    """The mean KL by the evaluation's own code."""
    original, changed = made.load(), planned(made, chosen)
    passages = [Passage(each.tokens) for each in made.passages]
    head = Head.of(original.model)
    reference = list(fidelity.hidden_states(original, passages, "original"))
    found = fidelity.compare(passages, fidelity.hidden_states(changed, passages, "changed"), head, reference, head)
    weights = [each.weights[target].double() for each in made.passages]
    return sum(float((f.kl * w).sum()) for f, w in zip(found, weights, strict=True)) / float(
        sum(w.sum() for w in weights)
    )


def plan(made: Made, *indices: int) -> tuple[int, ...]:
    """A plan that repeats ``indices``."""
    return tuple(itertools.islice(itertools.cycle(indices), len(made.problem.parts)))


def test_an_assembled_plan_has_the_kl_of_its_model(made: Made) -> None:
    model = Assembled(made.load(), made.candidates, made.passages, {"all": 1.0})
    assert model.now().mean == 0  # nothing is changed yet
    first, second = plan(made, 0, 1, 2), plan(made, 2, 1, 0)
    model.put(made.problem.choices(first))
    assert model.now().mean == pytest.approx(whole(made, first), rel=1e-3)
    tried = model.try_out(made.problem.choices(second))
    assert tried.mean == pytest.approx(whole(made, second), rel=1e-3)
    assert model.now().mean == pytest.approx(whole(made, first), rel=1e-3)  # trying changes nothing
    change = {a: c for a, c in made.problem.choices(second).items() if a.startswith("model.layers.1.")}
    mixed = model.try_out(change)
    model.put(change)
    assert torch.equal(model.now().sums, mixed.sums)


def test_targets_are_weighed_by_their_means(made: Made) -> None:
    chosen = plan(made, 0, 2)
    weights = {"all": 1.0, "backtracking": 3.0}
    model = Assembled(made.load(), made.candidates, made.passages, weights)
    model.put(made.problem.choices(chosen))
    expected = (whole(made, chosen) + 3 * whole(made, chosen, "backtracking")) / 4
    assert model.now().mean == pytest.approx(expected, rel=1e-3)
    nothing = [each.weights["all"] * 0 for each in made.passages]
    for each, zeros in zip(made.passages, nothing, strict=True):
        each.weights["never"] = zeros  # type: ignore[index]
    with pytest.raises(UserError, match="no token of never"):
        Assembled(made.load(), made.candidates, made.passages, {"never": 1.0})


def test_slopes_are_those_of_autograd(made: Made) -> None:
    chosen = plan(made, 1, 0)
    found = slopes(made.open(), made.candidates, made.problem.choices(chosen), made.passages, {"all": 1.0})
    original, changed = made.load(), planned(made, chosen)
    total, count = torch.zeros(()), 0
    for linear in changed.linears.values():
        linear.weight.requires_grad_()
    for each in made.passages:
        with torch.no_grad():
            p = original.model(input_ids=each.tokens[None]).logits[0, :-1].log_softmax(-1)
        q = changed.model(input_ids=each.tokens[None]).logits[0, :-1].log_softmax(-1)
        total, count = total + (p.exp() * (p - q)).sum(), count + len(q)
    (total / count).backward()
    for address, row in found.items():
        gradient = changed.linears[address].weight.grad
        assert gradient is not None
        for text, slope in row.items():
            error = made.candidates.weight(address, text) - original.linears[address].weight
            assert slope == pytest.approx(float((gradient * error).sum()), rel=1e-2, abs=2e-6)


def test_a_change_counts_both_slopes_and_both_errors(made: Made) -> None:
    chosen = plan(made, 1)
    table = made.table()
    steps = {m.address: {"w2g16": 5.0, "w3g16": 3.0, "w4g16": 1.0} for m in made.inventory.linears}
    found = changes(made.problem, chosen, steps, table)
    part = made.problem.parts[0]
    assert len(part.modules) == 3
    assert found[0] == pytest.approx(
        [3 * (5 - 3 + 1e-3 * (1 / 16 + 1 / 64)), 0, 3 * (1 - 3 + 1e-3 * (1 / 64 + 1 / 256))]
    )


def test_exchanges_are_all_that_fit_best_first(made: Made) -> None:
    chosen = tuple(solve(made.problem.units([[3.0, 2.0, 1.0]] * len(made.problem.parts)), made.problem.limit))
    delta = [[math.sin(7 * p + 3 * i) for i in range(3)] for p in range(len(made.problem.parts))]
    for row, now in zip(delta, chosen, strict=True):
        row[now] = 0.0
    found = list(exchanges(made.problem, chosen, delta))
    assert [value for value, _ in found] == sorted(value for value, _ in found)
    expected = set()
    for one, other in itertools.combinations(range(len(chosen)), 2):
        for i, j in itertools.product(range(3), repeat=2):
            changed = list(chosen)
            changed[one], changed[other] = i, j
            moved = [made.problem.costs[p][changed[p]] - made.problem.costs[p][chosen[p]] for p in (one, other)]
            # One rises and one falls, or one alone changes.
            if made.problem.cost(changed) <= made.problem.limit and (
                min(moved) <= 0 < max(moved) or moved.count(0) == 1
            ):
                expected.add(tuple(changed))
    expected.discard(chosen)
    assert {changed for _, changed in found} == expected
    for value, changed in found:
        assert value == pytest.approx(sum(row[index] for row, index in zip(delta, changed, strict=True)))


def search(made: Made, folder: Path, **limits: Any) -> Exchanged:
    weights = {"all": 1.0}
    spec = ExchangeSpec.model_validate({"proposals": 12, "patience": 3, "margin": 0, **limits})
    start = solve(made.problem.units([[3.0, 2.0, 1.0]] * len(made.problem.parts)), made.problem.limit)
    journal = Journal(
        folder / "measured.jsonl",
        "stamp",
        made.problem,
        lambda: Assembled(made.load(), made.candidates, made.passages, weights),
    )

    def own(choices: Mapping[str, Choice]) -> Mapping[str, Mapping[str, float]]:
        return slopes(made.open(), made.candidates, choices, made.passages, weights)

    return exchange(made.problem, start, journal, own, made.table(), spec)


def test_the_search_ends_with_a_better_plan_of_the_size(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = search(made, tmp_path)
    assert made.problem.cost(found.chosen) <= made.problem.limit
    assert found.end.mean < 0.95 * found.start.mean
    assert any(step.accepted for step in found.steps)
    assert found.end.mean == pytest.approx(whole(made, found.chosen), rel=1e-3)
    assert described(found)["gain"] == pytest.approx(found.start.mean - found.end.mean)
    # Half of the lines and half of one more, as a kill leaves them: the same steps, without measuring twice.
    path = tmp_path / "measured.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 2]) + lines[len(lines) // 2][:20])
    measured: list[int] = []
    kept = Assembled._kl
    monkeypatch.setattr(Assembled, "_kl", lambda self, final: measured.append(1) or kept(self, final))
    again = search(made, tmp_path)
    assert (again.chosen, again.steps, again.stopped) == (found.chosen, found.steps, found.stopped)
    assert len(measured) == len(lines) - len(lines) // 2


def test_limits_stop_the_search(made: Made, tmp_path: Path) -> None:
    assert search(made, tmp_path, proposals=2).stopped == "2 proposals"
    assert search(made, tmp_path / "other", minutes=1e-9).steps == ()
    # Nothing is better by a million standard errors.
    found = search(made, tmp_path, margin=1e6, proposals=100)
    assert (found.stopped, found.end.mean) == ("no exchange helps", found.start.mean)


def test_a_gain_has_the_standard_error_of_paired_passages() -> None:
    first = Kl(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 10.0, 10.0]))
    second = Kl(torch.tensor([2.0, 2.5, 5.0]), torch.tensor([10.0, 10.0, 10.0]))
    gain, error = first.better_by(second)
    assert gain == pytest.approx(3.5 / 30)
    differences = torch.tensor([1.0, 0.5, 2.0]) / 10
    assert error == pytest.approx(float(differences.std() / 3**0.5))
    assert first.better_by(first) == (0, 0)
