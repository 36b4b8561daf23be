"""How the paper's findings on importance are judged, on importances made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts_of import script

judges = script("reproduction_importance")
LABELS = ["1_up", "1_gate", "2_up", "2_gate"]
#: The last up projection leads, then its gate.
ORIGINAL = np.array([[1.0, 2.0, 6.0, 3.0], [1.0, 2.0, 5.0, 4.0]])
#: It lost to the others.
BASE = np.array([[4.0, 3.0, 2.0, 3.0], [4.0, 3.0, 2.0, 3.0]])


def made(monkeypatch: pytest.MonkeyPatch, noise: float = 0.0, **scores: np.ndarray) -> None:
    """Importances of these models; ``noise``: of 200 resamples."""
    generator = np.random.default_rng(0)

    class Made:
        labels = LABELS
        kinds = np.array(["up", "gate", "up", "gate"])
        last = np.array([False, False, True, True])
        behaviours = ("backtracking", "adding_knowledge")

        def __init__(self, folder: Path, names: list[str]) -> None:
            self.raw = {
                name: np.concatenate([scores[name][None], scores[name] + noise * generator.random((200, 2, 4))])
                for name in names
            }
            self.scores = {name: each / each.sum(-1, keepdims=True) for name, each in self.raw.items()}

    monkeypatch.setattr(judges, "Importances", Made)


@pytest.mark.parametrize(("scores", "noise", "expected"), [(ORIGINAL, 0.1, "holds"), (BASE, 0.1, "fails"),
                                                           (ORIGINAL, 90, "open")])  # fmt: skip
def test_the_last_up_projection_is_first(
    scores: np.ndarray, noise: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(monkeypatch, noise, original=scores)
    found = judges.first_overall(Path())
    assert found["verdict"] == expected and list(found["numbers"]) == ["rank of 2_up of 4"]
    assert judges.among_first(2)(Path())["verdict"] == expected


def test_what_distillation_and_compression_move(monkeypatch: pytest.MonkeyPatch) -> None:
    made(monkeypatch, 0.1, original=ORIGINAL, base=BASE, awq=BASE)
    assert judges.gained_by_distillation(Path())["verdict"] == "holds"
    lost = judges.lost_most("last layer", "awq")(Path())
    assert lost["verdict"] == "holds"
    assert lost["numbers"]["awq: their part of all losses, and of all modules"] == [1.0, 0.5]
    assert judges.lost_most("gates", "awq")(Path())["verdict"] == "open"  # no other module loses
    assert judges.lost_alike("base", "awq")(Path())["verdict"] == "holds"
    made(monkeypatch, 0.1, original=BASE, base=ORIGINAL, awq=ORIGINAL)
    assert judges.gained_by_distillation(Path())["verdict"] == "fails"
    assert judges.lost_most("last layer", "awq")(Path())["verdict"] == "fails"


@pytest.mark.parametrize(("ci", "expected"), [([0.5, 0.9], "holds"), ([0.1, 0.3], "fails"), ([0.3, 0.9], "open"),
                                              (None, "open")])  # fmt: skip
def test_annotations_agree_where_each_behaviour_does(ci: list[float] | None, expected: str, tmp_path: Path) -> None:
    behaviours: dict[str, Any] = {
        "backtracking": {"spearman": 0.9, "spearman_ci": [0.8, 1.0]},
        "adding_knowledge": {"spearman": 0.6, "spearman_ci": ci},
    }
    (tmp_path / "agreement").mkdir()
    data = {"schema_version": 1, "importance": {"behaviours": behaviours}}
    (tmp_path / "agreement" / "agreement.json").write_text(json.dumps(data), encoding="utf-8")
    assert judges.annotations_agree(tmp_path)["verdict"] == expected
