"""The source is read right, and a byte that changes in a checkpoint is seen."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import structure_source

    return structure_source


@pytest.fixture
def codes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import structure_codes

    return structure_codes


def test_circles_are_found_through_functions_and_other_files_and_types_are_told_apart(source: ModuleType) -> None:
    modules = {
        "p": "",
        "p.a": "from p import b",
        "p.b": "def f():\n    from p.c import x",
        "p.c": "import p.a",
        "p.d": "from __future__ import annotations\nif TYPE_CHECKING:\n    from .e import E",
        "p.e": "from .d import D",
        "p.f": "from p.a import x",
    }
    assert source.circles(modules) == [["p.a", "p.b", "p.c"]]
    assert source.circles(modules, types=True) == [["p.a", "p.b", "p.c"], ["p.d", "p.e"]]


@pytest.mark.parametrize(
    ("text", "is_walk"),
    [
        ("for i in range(n):\n    with opened.block(i) as block:\n        block(x)", True),
        ("for block, context in zip(model.layers, contexts):\n    x = block(x, **context)", True),
        ("x = self.model.layers[i](x)", True),
        ("with opened.block(0):\n    pass", False),
        ("for layer in cache.layers:\n    layer.keys.clear()", False),
    ],
)
def test_files_that_run_blocks_are_walks(source: ModuleType, text: str, is_walk: bool) -> None:
    assert bool(source.walks({"p.a": text})) == is_walk
    assert not source.walks({"p.contrib.a": text})


def test_there_is_one_walk_and_no_circle(source: ModuleType) -> None:
    modules = source.tree(BENCHMARKS.parent / "mixprec")
    assert source.circles(modules) == []
    # Probing takes one block of each kind by itself, to see what its attention computes.
    assert source.walks(modules) == ["mixprec.importance.probing", "mixprec.walk.walk"]


def test_lines_of_contrib_count_apart_and_a_notebook_counts_code(source: ModuleType, tmp_path: Path) -> None:
    modules = {"p.a": "1\n2\n", "p.contrib.b": "1\n"}
    assert (source.lines(modules), source.lines(modules, contrib=True)) == (2, 1)
    cells = [
        {"cell_type": "markdown", "source": ["text"]},
        {"cell_type": "code", "source": ["# why\n", "\n", "x = 1\n", "x"]},
    ]
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    assert source.notebook_lines(tmp_path / "n.ipynb") == 2


def test_one_byte_another_shape_and_a_missing_tensor_differ(codes: ModuleType, tmp_path: Path) -> None:
    tensors = {"same": torch.arange(8), "byte": torch.zeros(4, dtype=torch.uint8), "shape": torch.ones(2, 2)}
    for name, changed in (("old", {}), ("new", {"byte": torch.tensor([0, 0, 0, 1], dtype=torch.uint8)})):
        (tmp_path / name).mkdir()
        save_file({**tensors, **changed}, tmp_path / name / "model.safetensors")
    save_file({"more": torch.ones(1)}, tmp_path / "new" / "model-2.safetensors")
    found = codes.differences(codes.tensors(tmp_path / "old"), codes.tensors(tmp_path / "new"))
    assert set(found) == {"byte", "more"} and 0 < found["byte"] < 1 and found["more"] == 1
    assert codes.told(found).endswith("byte, more")
    assert codes.differences({"a": b"(4,)1234"}, {"a": b"(2, 2)1234"}) == {"a": 1.0}


def test_a_checkpoint_without_tensors_is_no_match(codes: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no tensors"):
        codes.tensors(tmp_path)


def test_a_process_that_fails_is_told_with_what_it_printed(codes: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="some trouble"):
        codes.cpu_seconds(tmp_path, tmp_path, "-c", "raise SystemExit('some trouble')")
