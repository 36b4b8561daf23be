"""Results change only with their rules' number: else a run would keep what it would now make otherwise."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import stage_values
import torch
from stage_values import STAGES, Values

from mixprec.compress import solving
from mixprec.numerics import hessian

KNOWN = json.loads(stage_values.FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Values]:
    return stage_values.all_values(tmp_path_factory.mktemp("stages"))


def check(stage: str, found: Values) -> None:
    known = KNOWN[stage]
    assert known["rules"] == stage_values.rules(stage), (
        f"{stage_values.where(stage)}: RULES is {stage_values.rules(stage)}, tests/rules.json knows {known['rules']}; "
        "run python tests/stage_values.py"
    )
    others = stage_values.off(stage, known["values"], found)
    assert not others, (
        f"{stage}: other results from the same inputs ({', '.join(others[:5])}), but the same number of rules. Where "
        f"that is meant, raise RULES in {stage_values.where(stage)} and run python tests/stage_values.py; else mend it"
    )


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_makes_what_its_rules_made(stage: str, found: dict[str, Values]) -> None:
    check(stage, found[stage])


def test_every_stage_is_recorded_and_no_other() -> None:
    assert KNOWN.keys() == STAGES.keys()


def test_other_numerics_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[..., hessian.Factor] = hessian.factorize

    def factorize(*arguments: object, damping: float, **options: object) -> hessian.Factor:
        return right(*arguments, damping=10 * damping, **options)

    monkeypatch.setattr(solving, "factorize", factorize)
    with pytest.raises(AssertionError, match=r"compress: other results .*gptaq, gptq.* raise RULES in mixprec"):
        check("compress", stage_values.compressed())


@pytest.mark.parametrize("stage", STAGES)
def test_a_value_beyond_the_tolerance_is_noticed(stage: str) -> None:
    values: Values = {name: list(each) for name, each in KNOWN[stage]["values"].items()}
    check(stage, values)
    name = next(name for name, each in values.items() if any(each))
    scale = max(map(abs, values[name]))
    values[name] = [value + 0.02 * scale for value in values[name]]
    with pytest.raises(AssertionError, match=f"{stage}: other results"):
        check(stage, values)


def test_rounding_and_one_code_that_fell_the_other_way_are_not(tmp_path: Path) -> None:
    values: Values = {name: list(each) for name, each in KNOWN["compress"]["values"].items()}
    values["gptq"] = (torch.tensor(values["gptq"]) * (1 + 1e-6)).tolist()
    values["gptq"][5] += 0.3
    check("compress", values)


def test_raised_rules_want_new_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("mixprec.compress"), "RULES", 99)
    with pytest.raises(AssertionError, match=r"run python tests/stage_values\.py"):
        check("compress", KNOWN["compress"]["values"])
