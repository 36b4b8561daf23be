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


def test_the_table_of_quantizers_is_what_was_measured() -> None:
    """docs/compression.md copies figures; each cell is compared with the file that it comes from."""
    found, page = figures_of("compression"), document("docs/compression.md")
    rows = {
        "GPTQ w3g64": ("kl", "gptq_w3g64"),
        "GPTQ w4g64": ("kl", "gptq_w4g64"),
        "AWQ w3g64": ("kl", "awq_w3g64"),
        "AWQ w4g64": ("kl", "awq_w4g64"),
        "GPTAQ w3g64": ("kl", "gptaq_w3g64"),
        "rounding w3g64": ("kl", "rtn_w3g64"),
        "rounding w4g64": ("kl", "rtn_w4g64"),
        "SparseGPT 50%, perplexity on WikiText-2 test": ("perplexity", "sparsegpt_50"),
        "SparseGPT 2:4, perplexity on WikiText-2 test": ("perplexity", "sparsegpt_24"),
    }
    for label, (key, job) in rows.items():
        line = next(line for line in page.splitlines() if line.startswith(f"| {label} |"))
        cells = [cell.strip() for cell in line.split("|")[2:5]]
        for cell, name in zip(cells, (job, f"llmcompressor_{job}", f"gptqmodel_{job}"), strict=True):
            value, measured = found[key].get(name), cell.replace(".", "").isdigit()
            assert measured == (value is not None), (label, name)
            if measured:
                assert cell == format(value, ".2f" if key == "kl" else ".1f"), (label, name)
    seconds = found["cpu_seconds"]
    shares = [seconds["gptq_w3g64"] / seconds[f"{peer}_gptq_w3g64"] for peer in ("gptqmodel", "llmcompressor")]
    assert f"{100 * shares[0]:.0f} to {100 * shares[1]:.0f}% of theirs in CPU seconds" in page


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


def test_what_documents_say_of_scorers_is_what_was_measured() -> None:
    found, page = figures_of("scoring"), " ".join(document("docs/sensitivity.md").split())
    rho = {name: f"{value:.2f}".replace("-", "−") for name, value in found["spearman"].items()}
    assert rho["fisher"] == rho["gradient_output"]
    assert f"is {rho['fisher']} for `gradient_output` and `fisher`" in page
    assert f"`hessian_trace` has {rho['hessian_trace']}, `weight_error` {rho['weight_error']}" in page
    assert f"`output_error` {rho['output_error']}" in page and f"importance {rho['importance']}." in page
    target = found["targeted"]["backtracking"]
    low, high = target["ci"]
    assert f"was {target['kl_own']:.3f} by backtracking's own scores and {target['kl_all']:.3f} by" in page
    assert f"a paired difference of {target['difference']:.3f} [{low:.3f}, {high:.3f}]" in page
    readme = " ".join(document("README.md").split())
    assert f"Spearman {rho['importance']} with the measured KL" in readme
    assert f"reach {rho['fisher']} ([RESULTS.md]" in readme


def test_the_table_of_allocations_is_what_was_measured() -> None:
    found, page = figures_of("allocation"), document("docs/allocation.md")
    columns = ("ours", "modelopt", "autoscheme", "uniform", "last", "llama_cpp", "random0")
    words, kl = " ".join(page.split()), found["kl"]
    for budget in ("3.25", "3.5", "4.0"):
        line = next(line for line in page.splitlines() if line.startswith(f"| {budget} |"))
        for cell, name in zip(line.split("|")[2:-1], columns, strict=True):
            assert cell.strip() == f"{kl[f'{name}@{budget}']:.3f}", (budget, name)
        assert {len(found["kl_draws"][f"{name}@{budget}"]) for name in columns[:4]} == {found["draws"]} == {3}
    for name, after in (
        ("uniform@3.25", "from {:.3f} to {:.3f}, ModelOpt's"),
        ("modelopt@3.5", "from {:.3f} to {:.3f}. So"),
    ):
        each = found["kl_draws"][name]
        assert after.format(min(each), max(each)) in words
    assert found["kl_ratio_vs_best_peer_325"] < 0.8 < found["kl_ratio_vs_best_peer_350"]
    for key in ("kl_ratio_predicted", "kl_ratio_exchange"):
        assert all(f"{value:.2f}" in words for value in found[key].values()), key
    mixture = f"{kl['llama_cpp@q3_k_m']:.3f} at {found['effective_bits']['llama_cpp@q3_k_m']:.2f} bits, more than"
    assert mixture in words and kl["llama_cpp@q3_k_m"] > kl["ours@3.5"]
    fewer = figures_of("allocation_16")
    for run in (found, fewer):
        assert set(run["best_other"].values()) == {"modelopt"}
        for budget, (low, high) in run["kl_ratio_ci"].items():
            ratio = run[f"kl_ratio_vs_best_peer_{round(100 * float(budget))}"]
            assert f"{ratio:.2f} [{low:.2f}, {high:.2f}]" in words, budget
        low, high = run["gap_recovered_ci"]
        recovered = f"{100 * run['gap_recovered']:.0f}% [{100 * low:.0f}, {100 * high:.0f}]"
        assert f"{recovered} of the damage of uniform 3 bits" in words
    shield = f"{100 * found['gap_recovered_protection']:.0f}% at {found['effective_bits']['protection@paper']:.2f} bits"
    assert f"the paper's protection of the last MLP, {shield}" in words
    low, high = found["kl_ratio_backtracking_ci"]
    assert f"{found['kl_ratio_backtracking']:.2f} [{low:.2f}, {high:.2f}] of the KL" in words
    gigabytes = {name: f"{value / 1e9:.1f}" for name, value in found["peak_bytes"].items()}
    assert f"{gigabytes['ours']} GB against {gigabytes['autoscheme']} and {gigabytes['modelopt']}" in words
    for key, end in (
        ("vs_protection", "of its KL."),
        ("vs_q3_k_m", "of it."),
        ("sparse_vs_uniform", "of the KL of uniform sparsity"),
        ("sparse_vs_alphapruning", "of AlphaPruning's"),
    ):
        assert f"{found[f'kl_ratio_{key}']:.2f} {end}" in words
    for peer, name in (("autoscheme", "AutoScheme"), ("modelopt", "ModelOpt")):
        assert f"{found[f'cpu_speedup_vs_{peer}']:.1f} times less CPU time than {name}" in words
    three = (kl[f"{name}@3.25"] for name in ("importance", "inverse", "uniform"))
    assert "{:.3f} and {:.3f} where uniform has {:.3f}".format(*three) in words
    scorers = " ".join(document("docs/sensitivity.md").split())
    importance = f"{found['spearman_importance']:.2f}".replace("-", "−")
    best = f"{found['spearman_best_scorer']:.2f} for `{found['spearman_best_scorer_name']}`"
    assert f"(`results/allocation.json`): {best}, {importance} for the paper's importance" in scorers
    ratios = [f"{found[f'kl_ratio_vs_best_peer_{size}']:.2f}" for size in (325, 350, 400)]
    readme = " ".join(document("README.md").split())
    assert "{}, {} and {} of the KL of the best other allocator".format(*ratios) in readme
