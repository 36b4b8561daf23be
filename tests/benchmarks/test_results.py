"""RESULTS.md is what the committed figures give, and every figure is explained where it is measured."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def script(name: str) -> ModuleType:
    """A benchmark's script as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


results = script("results")


def test_the_page_is_what_the_figures_give() -> None:
    assert (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8") == results.render(BENCHMARKS)


@pytest.mark.parametrize("path", results.figures(BENCHMARKS), ids=lambda path: path.stem)
def test_every_committed_figure_has_a_meaning_and_no_path_of_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    data = json.loads(text)
    docstring = ast.get_docstring(ast.parse((BENCHMARKS / data.pop("about")["benchmark"]).read_text(encoding="utf-8")))
    assert set(data) <= set(results.meanings(docstring))
    assert "/home/" not in text and "/work/" not in text and "/root/" not in text


def write(folder: Path, figures: dict[str, Any]) -> None:
    (folder / "bench.py").write_text(
        '"""How fast it is.\n\npython bench.py --json OUT\n\nWhat is measured.\n\nKeys of OUT\n'
        "    speed     in steps,\n              a second\n    parts     of the whole\n\nAn end.\n"
        '"""\n',
        encoding="utf-8",
    )
    (folder / "results").mkdir()
    about = {"benchmark": "bench.py", "command": "python bench.py", "machine": {"cores": 2}}
    data = {**figures, "about": about}
    (folder / "results" / "bench.json").write_text(json.dumps(data), encoding="utf-8")


def test_a_section_has_title_command_machine_and_a_row_for_each_figure(tmp_path: Path) -> None:
    write(tmp_path, {"speed": 12345.678, "parts": {"one": 0.12345, "none": None, "both": [1, 2.5]}})
    text = results.render(tmp_path)
    assert "## How fast it is\n\nWhat is measured.\n\n```bash\npython bench.py\n```\n\ncores 2.\n" in text
    for row in (
        "| `speed` | 12,346 | in steps, a second |",
        "| `parts.one` | 0.123 | of the whole |",
        "| `parts.none` | not measured | of the whole |",
        "| `parts.both` | 1, 2.5 | of the whole |",
    ):
        assert row in text.splitlines()


def test_the_command_names_no_folder_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py", "--quick", "--data", "/some/where", "--json", str(tmp_path / "x.json")])
    script("machine").write(str(tmp_path / "x.json"), "somewhere/attribution.py", {"a": 1})
    data = json.loads((tmp_path / "x.json").read_text())
    assert data["a"] == 1
    assert data["about"]["command"] == "python benchmarks/attribution.py --quick --json benchmarks/results/x.json"
    assert data["about"]["machine"]["cores"] and "date" not in data["about"]["machine"]


def figures_of(name: str) -> dict[str, Any]:
    return dict(json.loads((BENCHMARKS / "results" / f"{name}.json").read_text(encoding="utf-8")))


def document(name: str) -> str:
    """A page as a person reads it: without the comments that say where its figures come from."""
    return re.sub(r"<!--.*?-->", "", (BENCHMARKS.parent / name).read_text(encoding="utf-8"), flags=re.DOTALL)


def test_what_documents_say_of_checkpoints_is_what_was_measured() -> None:
    found, page = figures_of("checkpoints"), " ".join(document("docs/checkpoints.md").split())
    packed, gptq = found["overhead_w3"], found["overhead_w3_gptq"]
    sizes = f"{packed:.4f} times that as compressed-tensors and {gptq:.3f} times as GPTQ"
    assert sizes in page and f"off by more than {100 * found['predicted_error']:.3f}%" in page
    assert f"packed {found['pack_speed_ratio']:.1f} times as fast" in page
    assert f"in 3 bits, and {found['pack_speed_ratio_4']:.1f} times in 4" in page
    assert found["overhead_w3"] <= 1.01 and found["pack_speed_ratio"] >= 1
    for name in ("dense w3g64", "compressed-tensors w4g64, last MLP kept"):
        cell = f"vllm: {name}"
        assert found["matrix"][cell] == "loaded" and found["greedy_equal"][cell]
        assert abs(found["perplexity_ratio"][cell] - 1) < 0.01
