"""Figures of reliability: cases that were measured are kept for the same code, and every figure is explained."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def reliability(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import reliability

    return reliability


def test_cases_of_the_same_code_are_not_measured_again(reliability: ModuleType, tmp_path: Path) -> None:
    measured: list[str] = []

    def measure(name: str) -> dict[str, Any]:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(name)
        return {"problem": None}

    with pytest.raises(KeyboardInterrupt):
        list(reliability.Rows(tmp_path / "kills.jsonl", "code").each("abc", measure))
    measured = ["stopped"]
    rows = list(reliability.Rows(tmp_path / "kills.jsonl", "code").each("abc", measure))
    assert [row["case"] for row in rows] == ["a", "b", "c"] and measured == ["stopped", "c"]
    measured.clear()
    assert len(list(reliability.Rows(tmp_path / "kills.jsonl", "other code").each("a", measure))) == 1
    assert measured == ["a"]


def test_every_figure_is_explained(reliability: ModuleType) -> None:
    import results

    known = results.meanings(ast.get_docstring(ast.parse((BENCHMARKS / "reliability.py").read_text(encoding="utf-8"))))
    assert set(reliability.KEYS) <= set(known)
    for name in reliability.PARTS.values():
        tree = ast.parse((BENCHMARKS / f"{name}.py").read_text(encoding="utf-8"))
        (made,) = (
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "figures"
        )
        assert isinstance(made, ast.Dict)
        keys = {key.value for key in made.keys if isinstance(key, ast.Constant)}
        assert keys <= set(known), name


def test_figures_of_other_parts_stay(reliability: ModuleType) -> None:
    before = {"kills": 3, **reliability.told({}, "kills", {"a": "wrong"}, "1" * 64, True)}
    after = before | reliability.told(before, "fuzzing", {}, "2" * 64, False)
    assert after["failures"] == {"kills": {"a": "wrong"}} and after["quick"] == ["kills"]
    assert after["code"] == {"kills": "1" * 16, "fuzzing": "2" * 16}
    mended = after | reliability.told(after, "kills", {}, "2" * 64, False)
    assert not mended["failures"] and not mended["quick"]


def test_no_case_is_begun_behind_the_time(reliability: ModuleType, tmp_path: Path) -> None:
    late = reliability.Rows(tmp_path / "kills.jsonl", "code", until=0.0)
    assert not list(late.each("ab", lambda _: {"problem": None}))
    assert len(list(late.each("a", lambda _: {"problem": None}, needed=True))) == 1
    assert [row["case"] for row in late.each("ab", lambda _: {"problem": None})] == ["a"]
