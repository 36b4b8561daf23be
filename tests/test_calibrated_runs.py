"""Recipes and commands whose methods need data: every method in one run, sparsities by spectra, AWQ's scales."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mixprec import cli, pipeline, recipe
from mixprec.core.errors import UserError

VARIANTS: dict[str, dict[str, Any]] = {
    "gptq": {"default": "w3g16"},
    "gptaq": {"default": "w3g16", "method": "gptaq"},
    "awq": {"default": "w3g16", "method": "awq"},
    "awq_keeps_all": {"default": "keep", "method": "awq"},
    "awq_protects": {"default": "w3g16", "method": "awq", "rules": [{"match": "last_mlp", "format": "keep"}]},
    "any3": {"default": "any3g16", "method": "anyk"},
    "rtn": {"default": "w3g16", "method": "rtn"},
    "sparse": {"default": "keep", "sparsity": 0.5, "method": "sparsegpt"},
    "alpha": {"default": "keep", "sparsity": {"alphapruning": 0.5}, "method": "sparsegpt"},
    "mixed": {
        "default": "w3g16",
        "rules": [
            {"match": "1_q", "method": "rtn"},
            {"match": "*_down", "sparsity": "2:4", "method": "wanda", "format": "keep"},
        ],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("calibrated")
    traces = tiny.write_traces(folder / "traces.jsonl")
    text = folder / "text.txt"
    text.write_text(tiny.TEXT, encoding="utf-8")
    made = {
        "model": {"id": str(tiny_checkpoint)},
        "compress": {"method": "gptq", "calibration": {"traces": str(traces), "samples": 4, "tokens": 16}},
        "variants": {name: {"plan": plan} for name, plan in VARIANTS.items()},
        "evaluate": {"text": str(text), "text_tokens": 32},
    }
    path = folder / "methods.yaml"
    path.write_text(yaml.safe_dump(made), encoding="utf-8")
    out = folder / "run"
    return out, pipeline.Run(recipe.load(path), path.read_text(), "methods", out, None).run()


def test_every_method_in_one_run(finished: tuple[Path, dict[str, Any]]) -> None:
    _, summary = finished
    rows = summary["variants"]
    assert rows["awq_keeps_all"]["modules_quantized"] == 0
    assert rows["awq_keeps_all"]["kl_mean"] == 0
    for name, row in rows.items():
        if name != "awq_keeps_all":
            assert row["kl_mean"] > 0, name
            assert row["quality"]["weight_error"] > 0, name
    assert rows["rtn"]["quality"]["output_error"] is None
    assert rows["gptq"]["quality"]["output_error"] < 1
    assert rows["sparse"]["quality"]["zeros"] == pytest.approx(0.5, abs=0.01)
    assert rows["any3"]["code_bits"] == 3


def test_the_report_shows_the_solves(finished: tuple[Path, dict[str, Any]]) -> None:
    out, _ = finished
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "How well the modules were solved" in page
    row = re.search(r"<td>gptq</td>.*?</tr>", page[page.index("How well the modules were solved") :], re.DOTALL)
    assert row is not None
    assert row.group().count("%") == 4


def test_the_card_says_what_was_calibrated_on(finished: tuple[Path, dict[str, Any]]) -> None:
    out, _ = finished
    card = json.loads((out / "variants" / "gptq" / "checkpoint" / "mixprec.json").read_text())
    assert card["calibration"]["sources"][0]["kind"] == "traces"
    assert len(card["calibration"]["digest"]) == 64
    assert card["compress"]["damping"] == 0.03
    assert json.loads((out / "variants" / "rtn" / "checkpoint" / "mixprec.json").read_text())["calibration"] is None


def test_alphapruning_lists_a_sparsity_for_every_module(finished: tuple[Path, dict[str, Any]]) -> None:
    out, _ = finished
    plan = json.loads((out / "variants" / "alpha" / "plan.json").read_text())
    alphas = json.loads((out / "spectra.json").read_text())
    assert alphas.keys() == plan["modules"].keys()
    weights = load_file(out / "variants" / "alpha" / "checkpoint" / "model.safetensors")
    zeros = total = 0.0
    for address, module in plan["modules"].items():
        weight = weights[f"{address}.weight"]
        assert (weight == 0).float().mean() == pytest.approx(float(module["sparsity"]), abs=0.01)
        zeros += float((weight == 0).sum())
        total += weight.numel()
    assert zeros / total == pytest.approx(0.5, abs=0.005)


def test_protected_modules_stay_the_functions_they_were(
    finished: tuple[Path, dict[str, Any]], tiny_checkpoint: Path
) -> None:
    """What AWQ does to a kept weight are powers of two, row by row or column by column."""
    out, _ = finished
    before = load_file(tiny_checkpoint / "model.safetensors")
    after = load_file(out / "variants" / "awq_protects" / "checkpoint" / "model.safetensors")
    for kind in ("gate", "up", "down"):
        name = f"model.layers.1.mlp.{kind}_proj.weight"
        factor = after[name].double() / before[name].double()
        factor = factor[torch.isfinite(factor)]
        assert torch.equal(torch.frexp(factor).mantissa, torch.full_like(factor, 0.5))


def test_rank_shows_awqs_scales(
    finished: tuple[Path, dict[str, Any]],
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, _ = finished
    traces = tiny.write_traces(tmp_path / "traces.jsonl")
    mix(monkeypatch, "annotate", traces, "--out", tmp_path / "spans.jsonl")
    mix(monkeypatch, "attribute", tmp_path / "spans.jsonl", "--model", tiny_checkpoint, "--out", tmp_path / "i")
    importance, quality = tmp_path / "i" / "importance.json", out / "variants" / "awq" / "quality.json"
    capsys.readouterr()
    mix(monkeypatch, "rank", importance, "*_up", "--awq", quality)
    shown = capsys.readouterr().out
    scales = {a: r["scale"] for a, r in json.loads(quality.read_text()).items() if a.endswith("up_proj")}
    scaled = {address: scale for address, scale in scales.items() if scale != 1}  # 1: not scaled, and not ranked
    largest = max(scaled, key=lambda address: scaled[address])
    line = next(line for line in shown.splitlines() if f"{int(largest.split('.')[2]) + 1}_up" in line)
    assert "1st" in line.split("row")[1]
    with pytest.raises(UserError, match="holds no AWQ scales"):
        from mixprec.importance.artifact import awq_scales

        awq_scales(out / "variants" / "rtn" / "quality.json")


def test_compress_from_the_command_line(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = finished
    traces = tiny.write_traces(tmp_path / "traces.jsonl")
    plan = out / "variants" / "gptq" / "plan.json"
    calibration = ("--traces", traces, "--samples", 4, "--tokens", 16)
    mix(monkeypatch, "compress", plan, *calibration, "--out", tmp_path / "checkpoint")
    made = load_file(tmp_path / "checkpoint" / "model.safetensors")
    run = load_file(out / "variants" / "gptq" / "checkpoint" / "model.safetensors")
    assert all(torch.equal(made[name], run[name]) for name in run)
    AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
    assert mix(monkeypatch, "compress", plan, "--out", tmp_path / "none", code=2) is None


def mix(monkeypatch: pytest.MonkeyPatch, *arguments: object, code: int = 0) -> None:
    monkeypatch.setattr(sys, "argv", ["mixprec", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == code


MISTAKES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no calibration data": (lambda r: r.pop("compress"), "method gptq looks at the inputs of linears; add compress"),
    "a code book with gptq": (lambda r: r["plan"].update(default="any4g16"), "any4 and any3 need method anyk"),
    "sparsity with gptq": (lambda r: r["plan"].update(sparsity=0.5), "method gptq sets no weights to zero"),
    "sparsegpt without": (lambda r: r["plan"].update(method="sparsegpt"), "needs a sparsity, such as 0.5 or 2:4"),
    "wanda with a format": (
        lambda r: r["plan"].update(method="wanda", sparsity=0.5),
        "method wanda does not quantize; sparsegpt prunes and quantizes jointly",
    ),
    "an unknown method": (lambda r: r["plan"].update(method="gptx"), "plan.method: 'gptx'"),
    "too many samples": (lambda r: r["compress"]["calibration"].update(samples=400), "400"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_before_any_work(tiny_checkpoint: Path, tmp_path: Path, mistake: str) -> None:
    change, expected = MISTAKES[mistake]
    traces = tiny.write_traces(tmp_path / "traces.jsonl")
    made: dict[str, Any] = {
        "model": {"id": str(tiny_checkpoint)},
        "plan": {"default": "w3g16", "method": "gptq"},
        "compress": {"calibration": {"traces": str(traces), "samples": 4, "tokens": 16}},
    }
    change(made)
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(made), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        pipeline.Run(recipe.load(path), path.read_text(), "r", tmp_path / "run", None).run()
    assert expected in str(caught.value)


def test_calibrating_on_what_is_evaluated_is_told(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(tiny.TEXT, encoding="utf-8")
    made = {
        "model": {"id": str(tiny_checkpoint)},
        "plan": {"default": "w3g16", "method": "gptq"},
        "compress": {"calibration": {"text": str(text), "samples": 2, "tokens": 16}},
        "evaluate": {"text": str(text), "text_tokens": 32},
    }
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(made), encoding="utf-8")
    pipeline.Run(recipe.load(path), path.read_text(), "r", tmp_path / "run", None).run()
    assert "isalsowhatisevaluatedon" in "".join(capsys.readouterr().err.split())  # the terminal's width breaks lines
