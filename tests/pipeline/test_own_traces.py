"""The loop in one recipe on a tiny model: it writes traces, which give importance, a plan and calibration; what is made
of it writes its own, and importance shifts."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from mixprec import cli, pipeline, recipe
from mixprec.core import events
from mixprec.core.errors import UserError
from mixprec.core.stages import Stages
from mixprec.importance import shift as shifts
from mixprec.models.model import Model
from mixprec.pipeline import costs, own, usage
from mixprec.recipe import OWN
from mixprec.traces import store

needs_trl = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None or importlib.util.find_spec("peft") is None, reason="TRL and peft train"
)
GENERATE = {"max_new_tokens": 96, "temperature": 0}
CALIBRATION = {"traces": OWN, "samples": 2, "tokens": 48, "loops": "keep"}


def loop(folder: Path, model: Path, **parts: Any) -> Path:
    """A recipe of the whole loop; prompts are those of the traces that the model knows by heart."""
    traces = tiny.write_traces(folder / "traces.jsonl")
    keys: dict[str, Any] = {
        "title": "loop",
        "model": {"id": str(model)},
        "generate": {"prompts": str(traces), **GENERATE},
        "traces": {"source": OWN, "annotator": "cues"},
        "importance": {"resamples": 10},
        "compress": {"method": "gptq", "calibration": CALIBRATION},
        "variants": {
            "original": {"plan": {"default": "keep"}},
            "small": {"plan": {"default": "w4g16", "rules": [{"match": {"most_important": "*_up"}, "format": "keep"}]}},
        },
        "shift": {},
    }
    keys = {name: value for name, value in (keys | parts).items() if value is not None}
    path = folder / "loop.yaml"
    path.write_text(json.dumps(keys), encoding="utf-8")
    return path


def run(path: Path, out: Path, *overrides: str) -> dict[str, Any]:
    return pipeline.Run(recipe.load(path, overrides), path.read_text(), path.stem, out, None).run()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It knows TRACES by heart."""
    return tiny.write_checkpoint(tmp_path_factory.mktemp("model") / "model", steps=120)


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of a tiny run."""
    monkeypatch.setattr("mixprec.pipeline.run.write_report", lambda _: None)
    monkeypatch.setattr("mixprec.pipeline.own.write_shift", lambda *_: [])


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("loop")
    path = loop(folder, model)
    run(path, folder / "run")
    return path, folder / "run"


def test_the_loop_from_a_model_to_a_shift(model: Path, finished: tuple[Path, Path]) -> None:
    _, out = finished
    written = store.load(str(out / "traces.jsonl"))
    assert [trace.prompt for trace in written] == [row["prompt"] for row in tiny.TRACES]
    assert "Wait, that is not right" in written[0].output

    # What calibrated are these texts and nothing else.
    card = json.loads((out / "variants/small/checkpoint/mixprec.json").read_text())
    (source,) = card["calibration"]["sources"]
    assert source["kind"] == "traces" and source["name"] == OWN and source["traces"] == len(written)

    summary = json.loads((out / "summary.json").read_text())
    assert summary["provenance"]["traces"]
    assert set(summary["shifts"]) == {"small"}  # the original is compared with nothing
    assert summary["generated"]["traces"] == len(written) and "distilled" not in summary
    assert summary["annotated"] == {"own": True, "by": "cues", "judge": None}
    told = summary["shifts"]["small"]
    first, second = (
        json.loads((folder / "importance/importance.json").read_text()) for folder in (out, out / "variants/small")
    )
    again = shifts.shift(first, second)
    assert {name: entry["moved"] for name, entry in told["behaviours"].items()} == {
        name: entry["moved"] for name, entry in again["behaviours"].items()
    }
    assert second["provenance"]["model"] != first["provenance"]["model"]
    assert json.loads((out / "variants/small/shift/shift.json").read_text())["second"]["name"] == "small"
    page = (out / "report.html").read_text()
    assert "so part of what moved is another text" in page and "became by distillation" not in page
    assert "Where importance moved" in page and page.count("<h3>From original to small</h3>") == 1
    assert (out / told["page"]).is_file() and (out / "variants/small/shift/shift.png").is_file()


def test_what_is_to_come_has_the_names_of_what_comes(finished: tuple[Path, Path]) -> None:
    rows = events.read(finished[1])
    names = [name for name, _ in rows[0]["stages"]]
    assert {"generate", "attribute", "compress/small", "generate/small", "attribute/small"} == set(names)
    made = [row["name"] for row in rows if row["event"] == "stage" and row["state"] == "made"]
    assert [name for name in made if name in names] == names


def test_a_finished_loop_does_nothing_again(
    finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, no_drawing: None
) -> None:
    path, out = finished
    made: list[str] = []
    do = Stages.do
    monkeypatch.setattr(
        Stages, "do", lambda self, name, *rest: do(self, name, *rest[:-1], lambda: (made.append(name), rest[-1]()))
    )
    before = (out / "summary.json").read_bytes()
    run(path, out)
    assert made == [] and (out / "summary.json").read_bytes() == before


def test_a_killed_generation_goes_on_and_other_settings_begin_anew(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_drawing: None
) -> None:
    path = loop(tmp_path, model, importance=None, traces=None, shift=None, variants=None, compress=None)
    whole = tmp_path / "whole"
    run(path, whole)
    out, kept = tmp_path / "run", []
    write = own.tracing.Recorder.write

    def once(self: Any, trace: Any) -> None:
        if kept:
            raise KeyboardInterrupt
        kept.append(trace.id)
        write(self, trace)

    monkeypatch.setattr(own.tracing.Recorder, "write", once)
    with pytest.raises(KeyboardInterrupt):
        run(path, out)
    monkeypatch.setattr(own.tracing.Recorder, "write", write)
    assert not (out / "traces.jsonl").exists()
    (part,) = out.glob(".traces.*.jsonl")
    assert [trace.id for trace in store.load(str(part))] == kept

    run(path, out)
    assert (out / "traces.jsonl").read_bytes() == (whole / "traces.jsonl").read_bytes()
    run(path, out, "generate.max_new_tokens=8")
    assert all(len(trace.output) < 60 for trace in store.load(str(out / "traces.jsonl")))
    assert not list(out.glob(".traces.*.jsonl"))


def test_a_model_that_writes_no_span_is_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_drawing: None
) -> None:
    generate = own.generate

    def wordless(run: Any, model: Any, target: Path, name: str) -> str:
        stamp = generate(run, model, target, name)
        if name != "generate":
            tiny.write_traces(target, {"id": "1", "prompt": "Six apples.", "output": "Six six six."})
        return stamp

    monkeypatch.setattr(own, "generate", wordless)
    path = loop(tmp_path, model, variants={"small": {"plan": {"default": "w4g16"}}}, compress=None)
    found = run(path, tmp_path / "run")["shifts"]["small"]
    assert set(found) == {"unknown"} and "no trace has a span" in found["unknown"]
    assert not (tmp_path / "run/variants/small/shift").exists()


def test_the_same_traces_for_both(model: Path, tmp_path: Path, no_drawing: None) -> None:
    traces = tiny.write_traces(tmp_path / "given.jsonl")
    path = loop(tmp_path, model, generate=None, traces={"source": str(traces)}, shift={"traces": "same"},
                compress=None, variants={"small": {"plan": {"default": "w8g16"}}})  # fmt: skip
    found = run(path, tmp_path / "run")["shifts"]["small"]
    assert found["traces"] == len(tiny.TRACES) and not (tmp_path / "run/variants/small/traces.jsonl").exists()
    assert all(entry["spearman"] > 0.9 for entry in found["behaviours"].values())


@needs_trl
def test_a_recipe_that_begins_with_a_student(tmp_path: Path, no_drawing: None) -> None:
    """All stages see what the student became; its importance is compared with what it was."""
    base = tiny.write_checkpoint(tmp_path / "base", steps=40)
    lessons = tiny.write_traces(tmp_path / "lessons.jsonl")
    distill = {"traces": str(lessons), "validation": 1, "epochs": 12, "batch": 1, "rate": 3e-3, "dtype": "float32",
               "checks": 1}  # fmt: skip
    path = loop(tmp_path, base, distill=distill, generate=None, traces={"source": str(lessons)}, compress=None,
                shift={"traces": "same"}, variants={"small": {"plan": {"default": "w8g16"}}})  # fmt: skip
    out = tmp_path / "run"
    summary = run(path, out)
    student = Model(out / "distilled")
    assert summary["provenance"]["model"] == student.identity != summary["provenance"]["student"]
    assert set(summary["shifts"]) == {"base", "small"}
    learned = summary["distilled"]
    assert learned["traces"] == len(tiny.TRACES) - 1 and learned["after"] < learned["before"]
    assert "generated" not in summary and summary["annotated"]["own"] is False
    assert summary["shifts"]["base"]["page"] == "base/shift/shift.html"
    card = json.loads((out / "variants/small/checkpoint/mixprec.json").read_text())
    learned, first, small = (
        load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].float()
        for folder in (out / "distilled", base, out / "variants/small/checkpoint")
    )
    assert 0 < torch.dist(learned, small) < 0.5 * torch.dist(first, small)
    assert card["plan"]

    done = (out / "distilled/model.safetensors").stat().st_mtime_ns
    run(path, out, "title=again")
    assert (out / "distilled/model.safetensors").stat().st_mtime_ns == done
    (out / "distilled/model.safetensors").unlink()
    (out / "distilled").rename(out / "gone")
    run(path, out)
    assert Model(out / "distilled").identity == summary["provenance"]["model"]


def test_what_does_not_fit_is_told_at_once(model: Path, tmp_path: Path) -> None:
    path = loop(tmp_path, model, generate=None, importance=None, traces={"source": OWN}, variants=None,
                compress={"calibration": {**CALIBRATION, "behaviours": {"backtracking": 2}}})  # fmt: skip
    with pytest.raises(UserError) as problem:
        recipe.load(path)
    for said in (
        f"traces.source, compress.calibration.traces: {OWN} are what generate writes; add generate",
        f"traces.source: {OWN} have no annotations; set annotator",
        f"compress.calibration.traces: {OWN} have no annotations",
        "shift: importance is what shifts; add importance",
    ):
        assert said in str(problem.value)
    given = tiny.write_traces(tmp_path / "given.jsonl")
    for parts, said in (
        ({"traces": {"source": str(given)}}, f"shift.traces: own: the original's importance is of {given}"),
        ({"variants": None, "compress": None}, "shift: there is no second model"),
        ({"distill": {"traces": OWN}}, "the student writes them when it has learned"),
        ({"generate": {"prompts": "x", "template": {"a": 1}}}, "set chat_template: true"),
        ({"generate": {"prompts": "x", "keys": {"question": "q"}}}, "question: there are id, dataset"),
    ):
        with pytest.raises(UserError, match=said.replace("(", r"\(")):
            recipe.load(loop(tmp_path, model, **parts))


def test_files_are_looked_at_before_any_work(model: Path, tmp_path: Path) -> None:
    path = loop(tmp_path, model, generate={"prompts": "nowhere.jsonl"}, distill={"traces": "neither.jsonl"})
    found = pipeline.checked(recipe.load(path))
    told = "\n".join(found.problems)
    assert "nowhere.jsonl: no such file" in told and "neither.jsonl: no such file" in told
    assert any(each.startswith(f"traces.source: {OWN}") for each in found.unchecked)
    assert any("distill: " in each for each in found.lacking) == (importlib.util.find_spec("trl") is None)


def test_explain_knows_what_the_loop_takes(model: Path, tmp_path: Path) -> None:
    lessons = tiny.write_traces(tmp_path / "lessons.jsonl")
    chosen = recipe.load(loop(tmp_path, model, distill={"traces": str(lessons), "validation": 1}))
    found = pipeline.checked(chosen)
    seen = {each.key: each for each in usage.used(chosen, found)}
    assert seen["generate"].items == len(tiny.TRACES) and not seen["generate"].exact
    assert len(tiny.TRACES) * 96 < seen["traces"].tokens <= len(tiny.TRACES) * 256
    listed = {each.name: each for each in costs.stages(chosen, found)}
    assert list(listed)[:3] == ["distill", "generate", "importance"]
    assert {"shift base", "shift small"} <= listed.keys()
    assert listed["generate"].work == "4 prompts, at most 384 tokens"
    assert listed["shift small"].seconds == pytest.approx(listed["generate"].seconds + listed["importance"].seconds)
    bounds = {name for name, each in listed.items() if each.most}
    assert bounds == {"generate", "importance", "shift base", "shift small"} and costs.total(list(listed.values())).most


def test_explain_counts_own_traces_wherever_they_are_used(model: Path, tmp_path: Path) -> None:
    own_traces = {"source": OWN, "annotator": "cues"}
    parts = {
        "sensitivity": {"formats": ["w3g16", "w4g16"], "behaviours": ["backtracking"], "samples": 2},
        "evaluate": {"traces": own_traces},
        "shift": None,
    }
    path = loop(tmp_path, model, **parts)
    chosen = recipe.load(path)
    found = pipeline.checked(chosen)
    seen = {each.key: each for each in usage.used(chosen, found)}
    assert (seen["sensitivity"].items, seen["evaluate.traces"].items) == (2, len(tiny.TRACES))
    assert all(seen[key].most for key in ("generate", "traces", "sensitivity", "evaluate.traces"))
    listed = costs.stages(chosen, found)
    assert {each.name for each in listed if not each.most} == {"candidates", "compress small"}

    page = CliRunner().invoke(cli.app, ["explain", str(path)], catch_exceptions=False).output
    assert "│" not in page and "≤: as if every output ran to its limit" in " ".join(page.split())
    marked = {line.split()[0] for line in page.splitlines() if "≤ " in line}
    assert {"generate", "importance", "sensitivity", "evaluation", "sum"} <= marked
    assert "candidates" not in marked


def test_explain_marks_no_time_where_nothing_is_written(model: Path, tmp_path: Path) -> None:
    traces = {"source": str(tiny.write_traces(tmp_path / "given.jsonl"))}
    path = loop(tmp_path, model, generate=None, traces=traces, shift=None, compress={"method": "rtn"})
    assert "≤" not in CliRunner().invoke(cli.app, ["explain", str(path)], catch_exceptions=False).output
