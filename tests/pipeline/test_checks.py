"""What is wrong with a recipe is told by arithmetic, all of it, before any weight is read."""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from mixprec import cli, pipeline, recipe
from mixprec.core.errors import UserError
from mixprec.models.config import load_config
from mixprec.models.locate import BUNDLED
from mixprec.models.maps import decoder_of
from mixprec.pipeline.checks.amounts import Counting
from mixprec.plan.budget import budget_plan, check_reach
from mixprec.plan.budgetspec import BudgetSpec

Change = Callable[[dict[str, Any]], object]
FORMATS = ["w2g16", "w3g16", "w4g16"]


@pytest.fixture
def parts(tiny_checkpoint: Path, tmp_path: Path) -> dict[str, Any]:
    """A recipe with everything in it that can be wrong."""
    traces = str(tiny.write_traces(tmp_path / "traces.jsonl"))
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    budget = {"effective_bits": 4.5, "candidates": FORMATS}
    return {
        "model": {"id": str(tiny_checkpoint)},
        "traces": {"source": traces},
        "importance": {},
        "compress": {"method": "gptq", "calibration": {"traces": traces, "samples": 6, "tokens": 24}},
        "sensitivity": {"formats": FORMATS, "samples": 3},
        "ablation": {"each": "*_up", "formats": ["w3g16"]},
        "variants": {
            "ours": {"plan": {"budget": {**budget, "exchange": {"samples": 3}}}},
            "ranked": {
                "plan": {"default": "w3g16", "rules": [{"match": {"most_important": "*_mlp"}, "format": "keep"}]}
            },
            "ruled": {"plan": {"default": "w3g16", "rules": [{"match": "last_mlp", "format": "keep"}]}},
        },
        "evaluate": {"traces": {"source": traces}, "text": str(tmp_path / "text.txt"), "text_tokens": 32},
    }


def write(folder: Path, parts: dict[str, Any], name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_text(json.dumps(parts))
    return path


def problems(folder: Path, parts: dict[str, Any], data: Path | None = None) -> list[str]:
    chosen, known = recipe.read(write(folder, parts))
    return pipeline.checked(chosen, data, known=known).problems


def set_to(path: str, value: Any) -> Change:
    """A change of one key."""

    def change(parts: dict[str, Any]) -> None:
        *keys, last = path.split("/")
        for key in keys:
            parts = parts[key]
        if value is None:
            parts.pop(last)
        else:
            parts[last] = value

    return change


OURS = "variants/ours/plan/budget"
WRONG: dict[str, tuple[Change, str]] = {
    "budget too small": (set_to(f"{OURS}/effective_bits", 2.5), r"variant ours: .*no plan takes less than 3 with"),
    "budget too large": (set_to(f"{OURS}/effective_bits", 9), r"variant ours: .*largest plan .* takes 5; ask for that"),
    "files too small": (
        set_to(OURS, {"file_bytes": 100, "candidates": FORMATS}),
        r"variant ours: plan.budget.file_bytes: 100: in this checkpoint.format every plan .* takes \d+",
    ),
    "no prompt for the judge": (
        set_to("traces/judge", {"url": "http://localhost:8000/v1", "model": "j", "prompt": "gone.txt"}),
        r"traces.source: .*gone.txt: can't be read",
    ),
    "no table": (set_to(f"{OURS}/scores", "gone.json"), r"variant ours: .*gone.json"),
    "no targets": (set_to(f"{OURS}/weights", {"backtracking": 1}), r"plan.budget.weights: no scores for backtracking"),
    "no such behaviour": (
        set_to("variants/ruled/plan", {"budget": {"effective_bits": 4, "candidates": FORMATS, "scores": "importance",
                                                  "weights": {"backtrackin": 1}}}),
        r"variant ruled: plan.budget.weights: .*backtrackin",
    ),
    "guidance that no method follows": (
        lambda r: (r["compress"].update(method="awq", guided={}), r["sensitivity"].update(method="awq")),
        r"compress.guided: awq can't be guided; leave it out, or compress by one of gptaq, gptq, sparsegpt",
    ),
    "no such module": ((
        lambda r: r["variants"]["ruled"]["plan"]["rules"][0].update(match="9_up")
    ), r"variant ruled: plan.rules\[0\] .*'9_up' matches no module"),
    "no such ranked module": (
        lambda r: r["variants"]["ranked"]["plan"]["rules"][0].update(match={"most_important": "9_up"}),
        r"variant ranked: plan.rules\[0\] .*'9_up' matches no module",
    ),
    "too many ranked": (
        lambda r: r["variants"]["ranked"]["plan"]["rules"][0]["match"].update(count=99),
        r"variant ranked: .*count: 99: the selector matches only 6 modules",
    ),
    "rules that fight": (
        lambda r: r["variants"]["ruled"]["plan"]["rules"].append({"match": "last_up", "format": "w4g16"}),
        r"variant ruled: .*says keep, .* says w4g16; make the selectors disjoint",
    ),
    "ablation of nothing": (set_to("ablation/each", "9_up"), r"ablation: selector '9_up' matches no module"),
    "traces that are not there": (set_to("traces/source", "gone.jsonl"), r"traces.source: .*gone.jsonl: no such file"),
    "text that is not there": (set_to("evaluate/text", "gone.txt"), r"evaluate.text: gone.txt: no such file"),
    "calibration that is not there": (
        set_to("compress/calibration", {"text": "gone.txt", "samples": 6, "tokens": 24}),
        r"compress.calibration.text: gone.txt: no such file",
    ),
    "questions that are not there": (
        set_to("evaluate/benchmarks", [{"name": "folio", "source": "gone.jsonl"}]),
        r"evaluate.benchmarks\[0\].source: gone.jsonl: no such file",
    ),
    "too many samples": (
        set_to("compress/calibration/samples", 4000),
        r"compress.calibration: .*at most \d+ samples of 24 tokens; 4000 are asked for",
    ),
    "tokens beyond the context": (
        set_to("compress/calibration/tokens", 512),
        r"compress.calibration.tokens: 512 is more than the model's context of 256; lower it",
    ),
    "text beyond the context": (set_to("evaluate/text_tokens", 512), r"evaluate.text_tokens: 512 is more than the mo"),
    "traces beyond the context": (set_to("importance/max_tokens", 512), r"importance.max_tokens: 512 is more than"),
    "more samples than calibrated": (set_to("sensitivity/samples", 9), r"sensitivity.samples: 9: there are 6 calibrat"),
    "nothing left to exchange on": (
        set_to("sensitivity/samples", 5),
        r"variant ours: plan.budget.exchange: 6 passages are there, 5 of them are scored",
    ),
    "too few traces to exchange on": (
        lambda r: (r["sensitivity"].update(behaviours=["backtracking"]), r["traces"].update(first=3)),
        r"variant ours: plan.budget.exchange: 3 passages are there, 3 of them are scored",
    ),
    "behaviours that no trace has": (
        lambda r: (r["sensitivity"].update(behaviours=["backtracking"], samples=1), r["traces"].update(
            source=str(tiny.write_traces(Path(r["traces"]["source"]).with_name("t3.jsonl"), tiny.TRACES[3])))),
        r"sensitivity.behaviours: backtracking: no span in",
    ),
    "no model": (set_to("model/id", "no/such/folder"), r"model.id: .*no/such/folder"),
    "importance that nobody makes": (set_to("importance", None), r"variant ranked ranks modules by importance"),
    "scores that nobody makes": (set_to("sensitivity", None), r"variant ours: budget.scores: sensitivity is a part of"),
    "an engine without the method": (
        set_to("variants/ruled/engine", "autoround"),
        r"variant ruled: engine autoround has no method gptq",
    ),
    "a runtime that refuses": (
        set_to("checkpoint", {"format": "compressed-tensors", "runtime": "vllm", "device": "cpu"}),
        r"variant ruled: checkpoint.runtime: vllm on cpu, compressed-tensors does not load this plan",
    ),
    "a candidate that the runtime refuses": (
        set_to("checkpoint", {"format": "compressed-tensors", "runtime": "vllm", "device": "cpu"}),
        r"variant ours: plan.budget.candidates: w2g16: checkpoint.runtime: vllm on cpu",
    ),
    "a default that the runtime refuses whatever ranks": (
        set_to("checkpoint", {"format": "compressed-tensors", "runtime": "vllm", "device": "cpu"}),
        r"variant ranked: checkpoint.runtime: vllm on cpu",
    ),
    "mixtures that the runtime refuses": (
        set_to("checkpoint", {"format": "compressed-tensors", "runtime": "vllm"}),
        r"variant ours: plan.budget: write budget: \{tie: fused\}: plans that mix its candidates are refused",
    ),
}  # fmt: skip


def test_the_recipe_itself_is_right(parts: dict[str, Any], tmp_path: Path) -> None:
    found = pipeline.checked(recipe.load(write(tmp_path, parts)))
    assert (found.problems, found.lacking, found.unchecked) == ([], [], [])
    assert found.plans["ruled"] is not None
    assert found.plans["ours"] is found.plans["ranked"] is None
    assert found.held["traces.source"].spans["backtracking"] == 3


@pytest.mark.parametrize("mistake", WRONG)
def test_each_mistake_is_told(mistake: str, parts: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    change, expected = WRONG[mistake]
    change(parts)
    told = problems(tmp_path, parts)
    assert any(re.search(expected, problem, re.DOTALL) for problem in told), told


def test_all_mistakes_are_told_at_once_by_all_verbs(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    several = ("budget too small", "no such module", "text that is not there", "traces beyond the context",
               "too many ranked", "ablation of nothing")  # fmt: skip
    for mistake in several:
        WRONG[mistake][0](parts)
    parts["plan"] = {"default": "keep"}  # beside variants: what is wrong with the recipe alone hides nothing either
    path = write(tmp_path, parts)
    assert "plan and variants exclude one another" in "\n".join(problems(tmp_path, parts))
    del parts["plan"]
    write(tmp_path, parts)
    for verb in ("validate", "explain", "run"):
        code, errors = call(monkeypatch, capsys, verb, path)
        assert code == 2
        assert errors.startswith(f"error: {path}: {len(several)} problems\n"), errors
        for mistake in several:
            assert re.search(WRONG[mistake][1], errors), (verb, mistake)
    assert not (tmp_path / "runs").exists()


def test_a_bad_file_hides_no_other(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    good, bad = write(tmp_path, parts, "good.yaml"), copy.deepcopy(parts)
    WRONG["budget too small"][0](bad)
    first = write(tmp_path, bad, "first.yaml")
    (tmp_path / "second.yaml").write_text("model: [")
    monkeypatch.setattr(sys, "argv", ["mixprec", "validate", str(first), "gone.yaml", "second.yaml", str(good)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    said = capsys.readouterr()
    assert caught.value.code == 2
    assert said.out == f"{good}: valid, 3 variants\n"
    assert f"{first}: variant ours: plan.budget.effective_bits: 2.5: no plan takes less than 3" in said.err
    assert "gone.yaml: no such recipe" in said.err
    assert "second.yaml:1: not valid YAML" in said.err


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["mixprec", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(str(caught.value.code)), capsys.readouterr().err


def test_data_that_is_not_here(parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a data folder a recipe can be right, but not run; a folder or file that is missing is a mistake."""
    monkeypatch.delenv(recipe.DATA_VARIABLE, raising=False)
    parts["traces"]["source"] = "data:traces.jsonl"
    chosen = recipe.load(write(tmp_path, parts))
    found = pipeline.checked(chosen)
    assert found.problems == []
    assert found.lacking == [f"traces.source: no data folder is known; {recipe.GIVE_DATA}"]
    with pytest.raises(UserError, match=r"traces\.source: no data folder is known"):
        pipeline.Run(chosen, "", "r", tmp_path / "run", None).run()
    assert not (tmp_path / "run").exists()
    assert pipeline.checked(chosen, tmp_path).problems == []
    (tmp_path / "empty").mkdir()
    assert "does not exist; check --data" in pipeline.checked(chosen, tmp_path / "empty").problems[0]
    assert "the data folder" in pipeline.checked(chosen, tmp_path / "gone").problems[0]


def test_what_this_machine_lacks_is_no_mistake_of_the_recipe(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXPREC_PEERS", str(tmp_path / "none"))
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.delitem(sys.modules, "vllm")
    parts["variants"]["peer"] = {"plan": {"default": "w3g16"}, "engine": "gptqmodel"}
    parts["model"]["device"] = "cuda:77"
    parts["evaluate"] |= {"benchmarks": ["folio"], "engine": {"kind": "vllm"}}
    chosen = recipe.load(write(tmp_path, parts))
    found = pipeline.checked(chosen)
    assert found.problems == []
    told = "\n".join(found.lacking)
    for expected in ("cuda:77 is not in this machine", "gptqmodel has no environment", "the package vllm is not inst"):
        assert expected in told
    assert found.unchecked == ["evaluate.benchmarks: questions that come from the hub (folio)"]
    with pytest.raises(UserError, match="3 problems"):
        pipeline.Run(chosen, "", "r", tmp_path / "run", None).check("r.yaml")


def test_a_disk_that_holds_one_checkpoint_but_not_all(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts["variants"] = {name: {"plan": {"default": "w3g16"}} for name in ("a", "b", "c")}
    for part in ("sensitivity", "ablation", "importance", "evaluate"):
        del parts[part]
    chosen = recipe.load(write(tmp_path, parts))
    found = pipeline.checked(chosen)
    each = pipeline.rows(chosen, found)["a"]["bytes_on_disk"]
    free = 2 * each
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, free))  # type: ignore[attr-defined]
    made = pipeline.Run(chosen, "", "r", tmp_path / "run", None)
    with pytest.raises(UserError, match=rf"r.yaml: .*writing it takes {3 * each:,} bytes, .* has {free:,} free"):
        made.check("r.yaml")
    (tmp_path / "run" / "variants" / "a" / "checkpoint").mkdir(parents=True)  # one that is there already
    made.check("r.yaml")


def test_a_model_of_the_hub_that_is_not_here(tmp_path: Path) -> None:
    parts = {"model": {"id": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"}, "plan": {"default": "w3g128"}}
    found = pipeline.checked(recipe.load(write(tmp_path, parts)))
    assert found.problems == []
    assert len(found.unchecked) == 1
    assert "which are not on this machine" in found.unchecked[0]


@pytest.mark.parametrize(
    "name", [pytest.param(each, marks=[pytest.mark.slow] * ("r1_dynamic" in each)) for each in recipe.catalogue()]
)
def test_the_recipes_are_right(name: str, shared_data: Path) -> None:
    found = pipeline.checked(recipe.load(recipe.catalogue()[name]), shared_data)
    assert found.problems == []


INVENTORY = decoder_of(load_config(BUNDLED))


@settings(max_examples=25, deadline=None)
@given(
    measure=st.sampled_from(["effective_bits", "code_bits", "bytes"]),
    share=st.floats(-0.2, 1.2, allow_nan=False),
    tie=st.sampled_from([None, "fused"]),
)
def test_a_budget_is_reachable_or_the_nearest_is_told(measure: str, share: float, tie: str | None) -> None:
    low, high = {"effective_bits": (2.25, 6.25), "code_bits": (2, 6), "bytes": (90e6, 150e6)}[measure]
    size = low + share * (high - low)

    def reach(size: float) -> object:
        limit = int(size) if measure == "bytes" else size
        spec = BudgetSpec.model_validate({measure: limit, "candidates": ["w2g64", "w6g64"], "tie": tie})
        return check_reach(spec, INVENTORY, "m", "rtn", lambda plan: 0)

    try:
        reach(size)
    except UserError as problem:
        told = re.search(r"takes (?:less than )?([\d.]*\d)", str(problem))
        assert told is not None, problem
        nearest = float(told[1])
        reach(nearest)
        assert nearest > size if "less" in str(problem) else nearest < size
        with pytest.raises(UserError):
            step = nearest * 1e-6
            reach(nearest - step if "less" in str(problem) else nearest + step)


def test_the_smallest_budget_of_one_format_for_all_is_told() -> None:
    """Rows of 576 weights take q5_0 in the place of q4_k, more than q4_1."""

    def plan(size: float) -> object:
        asked = {"effective_bits": size, "candidates": ["q4_k", "q4_1"], "allocation": "uniform"}
        return budget_plan(BudgetSpec.model_validate(asked), INVENTORY, "m", "ggml")

    with pytest.raises(UserError, match=r"no single candidate .* fits effective_bits 4.9; the smallest takes 5$"):
        plan(4.9)
    plan(5)


def test_the_samples_that_are_told_can_be_asked_for(parts: dict[str, Any], tmp_path: Path) -> None:
    """Far too many are told the same number as one too many: what there is, not what bytes would allow."""

    def told(samples: int) -> list[str]:
        set_to("compress/calibration/samples", samples)(parts)
        return re.findall(r"at most (\d+) samples", str(problems(tmp_path, parts)))

    (most,) = told(4000)
    assert told(int(most) + 1) == [most]
    assert told(int(most)) == []


def test_tokens_are_counted_where_they_are_few_and_estimated_where_not() -> None:
    words = tiny.tokenizer().backend_tokenizer
    counting = Counting(words)
    short, long = tiny.TEXT, tiny.TEXT * 2000
    exact = len(words.encode(short, add_special_tokens=False).ids)
    assert counting.amount([short, short]) == ((exact, exact), True)
    estimate = counting.amount([long])
    assert not estimate.exact
    assert estimate.total == pytest.approx(counting.amount([long], exactly=True).total, rel=0.02)
    assert Counting().amount([short]) == ((round(len(short) / 3.5),), False)
