"""``mixprec run`` from end to end on a tiny model: numbers, resuming, and what a change of the recipe repeats."""

from __future__ import annotations

import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from mixprec import pipeline, recipe
from mixprec.core import events
from mixprec.core.errors import UserError
from mixprec.core.stages import Stages
from mixprec.importance import statistics
from mixprec.models.model import Model
from mixprec.traces.store import BEHAVIOURS

STAGES = [
    "annotate", "attribute", "annotate/evaluation", "reference", "evaluate/original",
    "compress/uniform", "evaluate/uniform", "compress/least", "evaluate/least",
]  # fmt: skip
REPORT = {"report.html", "importance.png", "importance.svg", "variants.png"}


def run(path: Path, out: Path, *overrides: str) -> dict[str, Any]:
    return pipeline.Run(recipe.load(path, overrides), path.read_text(), path.stem, out, None).run()


def files(folder: Path) -> list[Path]:
    """All but the log, the one file with times in it."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != events.NAME]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in files(folder)}


def times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files(folder)}


@pytest.fixture(scope="module")
def recipe_file(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    return tiny.write_recipe(folder / "tiny.yaml", tiny_checkpoint, tiny.write_traces(folder / "traces.jsonl"))


@pytest.fixture(scope="module")
def finished(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, report and all, that is only read."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run(recipe_file, out)
    return out


@pytest.fixture(scope="module")
def summary(finished: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((finished / "summary.json").read_text())
    return found


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes four fifths of a tiny run, and has tests of its own."""
    monkeypatch.setattr("mixprec.pipeline.run.write_report", lambda _: None)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the stages that were not skipped."""
    names: list[str] = []
    do = Stages.do

    def spy(self: Stages, name: str, rules: int, inputs: Any, outputs: Any, make: Callable[[], object]) -> str:
        return do(self, name, rules, inputs, outputs, lambda: (names.append(name), make()))

    monkeypatch.setattr(Stages, "do", spy)
    yield names


# What is there at the end


def test_the_run_folder(finished: Path) -> None:
    names = set(tree(finished))
    assert names >= REPORT | {
        "recipe.yaml", "spans.jsonl", "summary.json",
        "importance/importance.json", "importance/importance_released.json", "importance/steering.safetensors",
        "evaluation/spans.jsonl", "evaluation/reference.safetensors",
        "variants/uniform/checkpoint/config.json", "variants/uniform/checkpoint/model.safetensors",
        "variants/uniform/quality.json", "variants/uniform/plan.json", "variants/uniform/result.json",
        "variants/uniform/layout.json", "variants/uniform/tokens.json",
    }  # fmt: skip
    assert not [name for name in names if name.startswith("variants/original/checkpoint")]
    assert not [name for name in names if ".partial" in name]


def test_summary_has_what_the_recipe_promises(summary: dict[str, Any]) -> None:
    assert set(summary["variants"]) == {"original", "uniform", "least"}
    for row in summary["variants"].values():
        for key in (
            "code_bits", "effective_bits", "bytes", "perplexity", "kl_mean", "kl_median", "kl_p99", "top1_agreement"
        ):  # fmt: skip
            assert isinstance(row[key], float | int), key
        assert set(row["behaviours"]) == set(BEHAVIOURS)
        assert row["text"]["tokens"] > 0
    assert set(summary["behaviours"]) == set(BEHAVIOURS)
    for entry in summary["behaviours"].values():
        top = entry["top_modules"]
        assert len(top) == 10
        assert [module["rank"] for module in top] == list(range(1, 11))
        assert [module["score"] for module in top] == sorted((module["score"] for module in top), reverse=True)
        assert 0 < sum(module["relative"] for module in top) <= 1 + 1e-9


def test_keeping_everything_is_the_original(summary: dict[str, Any]) -> None:
    row = summary["variants"]["original"]
    assert row["modules_quantized"] == 0
    for part in (row, row["text"], *row["behaviours"].values()):
        assert part["kl_mean"] == part["kl_p99"] == 0.0
        assert part["kl_mean_ci"] == [0.0, 0.0]
        assert part["top1_agreement"] == 1.0
    assert (row["code_bits"], row["effective_bits"]) == (16, 16)


def test_numbers_agree_with_plain_transformers(finished: Path, summary: dict[str, Any], tiny_checkpoint: Path) -> None:
    original, uniform = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (tiny_checkpoint, finished / "variants" / "uniform" / "checkpoint")
    )
    nll, kl, agree = [], [], []
    for trace in tiny.TRACES:
        ids = tiny.tokenizer()(trace["prompt"] + trace["output"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            p, q = (model(ids).logits[0, :-1].double().log_softmax(-1) for model in (original, uniform))
        nll.append(-q.gather(1, ids[0, 1:, None])[:, 0])
        kl.append((p.exp() * (p - q)).sum(-1))
        agree.append(p.argmax(-1) == q.argmax(-1))
    row = summary["variants"]["uniform"]
    assert row["tokens"] == len(torch.cat(kl))
    assert row["perplexity"] == pytest.approx(float(torch.cat(nll).mean().exp()), rel=1e-4)
    assert row["kl_mean"] == pytest.approx(float(torch.cat(kl).mean()), rel=1e-4)
    assert row["kl_p99"] == pytest.approx(float(torch.cat(kl).quantile(0.99)), rel=1e-4)
    assert row["top1_agreement"] == pytest.approx(float(torch.cat(agree).double().mean()))
    assert row["kl_mean"] > 0.01  # two bits do hurt a model that has learned something
    difference = summary["differences"]["uniform"]["original"]
    assert difference["kl_difference"] == pytest.approx(row["kl_mean"])


def test_the_least_important_module_is_the_one_quantized(finished: Path) -> None:
    importance = json.loads((finished / "importance" / "importance.json").read_text())
    shares = [0.0] * len(importance["modules"])
    for entry in importance["behaviours"].values():
        for i, score in enumerate(entry["scores"]):
            shares[i] += score / sum(entry["scores"])
    last = [i for i, module in enumerate(importance["modules"]) if module["layer"] == 2]
    least = importance["modules"][min(last, key=lambda i: shares[i])]["address"]
    plan = json.loads((finished / "variants" / "least" / "plan.json").read_text())["modules"]
    assert [address for address, module in plan.items() if module["format"] != "keep"] == [least]


# Resuming


def test_a_second_run_does_nothing(copied: Path, recipe_file: Path, made: list[str]) -> None:
    bytes_before, times_before = tree(copied), times(copied)
    run(recipe_file, copied)
    assert made == []
    assert tree(copied) == bytes_before  # report and pictures too: drawn again, the same
    rewritten = {name for name, stamp in times(copied).items() if times_before[name] != stamp}
    plans = {f"variants/{name}/{file}.json" for name in ("original", "uniform", "least") for file in ("plan", "layout")}
    cards = {f"variants/{name}/checkpoint/README.md" for name in ("uniform", "least")}
    assert rewritten <= REPORT | plans | cards | {"recipe.yaml", "summary.json"}


@pytest.mark.usefixtures("no_report")
def test_killed_in_every_stage(
    finished: Path, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every attempt dies at the first stage that has work: before it does any, then behind it, before its marker."""
    out, do, deaths = tmp_path / "run", Stages.do, []

    def deadly(self: Stages, name: str, rules: int, inputs: Any, outputs: Any, make: Callable[[], object]) -> str:
        def die() -> None:
            if (name, "after") in deaths:
                make()
                return
            if (name, "before") in deaths:
                make()
                deaths.append((name, "after"))
            else:
                deaths.append((name, "before"))
            raise KeyboardInterrupt

        return do(self, name, rules, inputs, outputs, die)

    monkeypatch.setattr(Stages, "do", deadly)
    for _ in range(2 * len(STAGES)):
        with pytest.raises(KeyboardInterrupt):
            run(recipe_file, out)
        assert not (out / "summary.json").exists()
    run(recipe_file, out)
    assert deaths == [(name, when) for name in STAGES for when in ("before", "after")]
    assert tree(out) == {name: content for name, content in tree(finished).items() if name not in REPORT}


@pytest.mark.usefixtures("no_report")
def test_killed_between_two_traces(
    finished: Path, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, writing = tmp_path / "run", statistics.writing

    def die_at_the_third(path: Path, *rest: Any) -> Any:
        if path.name.startswith("00002"):
            raise KeyboardInterrupt
        return writing(path, *rest)

    monkeypatch.setattr(statistics, "writing", die_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(recipe_file, out)
    monkeypatch.setattr(statistics, "writing", writing)
    before = times(out / "importance" / "traces")
    assert len(before) == 2
    run(recipe_file, out)
    assert before.items() <= times(out / "importance" / "traces").items()
    assert tree(out) == {name: content for name, content in tree(finished).items() if name not in REPORT}


@pytest.mark.usefixtures("no_report")
def test_a_bit_that_changes_in_what_a_run_made_is_told_and_made_again(
    finished: Path, copied: Path, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        "spans.jsonl", "importance/importance.json", "importance/traces/00001.safetensors",
        "evaluation/spans.jsonl", "evaluation/reference.safetensors", "variants/uniform/quality.json",
        "variants/least/checkpoint/model.safetensors", "variants/original/result.json", ".stages/evaluate-least.json",
    ]  # fmt: skip
    for name in names:
        content = bytearray((copied / name).read_bytes())
        content[2 * len(content) // 3] ^= 4
        (copied / name).write_bytes(content)
    run(recipe_file, copied)
    told = capsys.readouterr().err.replace("\n", "")
    assert not [name for name in names if f"{copied / name}" not in told]
    assert tree(copied) == tree(finished)


def start(recipe_file: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mixprec", "run", str(recipe_file), "--out", str(out)]
    # A shell that starts tests in the background has its children ignore Ctrl-C.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def test_a_process_that_is_killed(finished: Path, recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(recipe_file, out)
    wait_for(out / ".stages" / "attribute.json", process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (out / "summary.json").exists()
    run(recipe_file, out)
    assert tree(out) == tree(finished)


def test_ctrl_c(recipe_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(recipe_file, out)
    wait_for(out / "recipe.yaml", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopped; what is finished is kept: the same command continues" in errors
    assert "Traceback" not in errors


# What a change of the recipe repeats

EVALUATIONS = {"evaluate/original", "evaluate/uniform", "evaluate/least"}


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    ("override", "repeated"),
    [
        ("title=another", set()),
        ("variants.uniform.description=another", set()),
        ("variants.uniform.plan.default=w4g16", {"compress/uniform", "evaluate/uniform"}),
        ("evaluate.text_tokens=16", {"reference", *EVALUATIONS}),
        ("evaluate.traces.preset=aligned", {"annotate/evaluation", "reference", *EVALUATIONS}),
        ("importance.compare=[]", {"attribute"}),
        ("traces.preset=released", {"annotate", "attribute"}),
        ("model.dtype=bfloat16", {"attribute", "reference", *EVALUATIONS}),
    ],
)
def test_a_change_repeats_what_depends_on_it(
    copied: Path, recipe_file: Path, made: list[str], override: str, repeated: set[str]
) -> None:
    kept = (copied / "variants" / "least" / "plan.json").read_bytes()
    run(recipe_file, copied, override)
    if (copied / "variants" / "least" / "plan.json").read_bytes() != kept:  # another module is the least important now
        repeated = repeated | {"compress/least", "evaluate/least"}
    assert set(made) == repeated
    assert len(made) == len(repeated)


@pytest.mark.usefixtures("no_report")
def test_other_traces_repeat_what_is_made_of_them(
    copied: Path, recipe_file: Path, tmp_path: Path, made: list[str]
) -> None:
    fewer = tiny.write_traces(tmp_path / "fewer.jsonl", *tiny.TRACES[:2])
    run(recipe_file, copied, f"evaluate.traces.source={fewer}")
    assert set(made) == {"annotate/evaluation", "reference", *EVALUATIONS}
    made.clear()
    same = shutil.copyfile(fewer, tmp_path / "same.jsonl")  # the content counts, not the name
    run(recipe_file, copied, f"evaluate.traces.source={same}")
    assert made == []


@pytest.mark.usefixtures("no_report")
def test_another_model_repeats_everything_but_the_spans(
    copied: Path, recipe_file: Path, tmp_path: Path, made: list[str]
) -> None:
    other = tiny.write_checkpoint(tmp_path / "other", seed=1)
    run(recipe_file, copied, f"model.id={other}")
    assert made == [name for name in STAGES if not name.startswith("annotate")]


@pytest.mark.usefixtures("no_report")
def test_a_variant_that_keeps_everything_now_loses_its_old_checkpoint(copied: Path, recipe_file: Path) -> None:
    summary = run(recipe_file, copied, "variants.uniform.plan.default=keep")
    assert summary["variants"]["uniform"]["kl_mean"] == 0
    folder = copied / "variants" / "uniform"
    assert sorted(path.name for path in folder.iterdir()) == ["layout.json", "plan.json", "result.json", "tokens.json"]


# Recipes with fewer parts, and bad input


@pytest.mark.parametrize("parts", [{"evaluate": None}, {"variants": None, "evaluate": None}])
def test_recipes_with_fewer_parts(
    tiny_checkpoint: Path, recipe_file: Path, tmp_path: Path, parts: dict[str, Any]
) -> None:
    path = tiny.write_recipe(tmp_path / "r.yaml", tiny_checkpoint, recipe_file.parent / "traces.jsonl", **parts)
    summary = run(path, tmp_path / "run")
    assert summary["evaluation"] is None
    assert set(summary["variants"]) == (set() if "variants" in parts else {"original", "uniform", "least"})
    assert (tmp_path / "run" / "report.html").stat().st_size > 0


@pytest.mark.usefixtures("no_report")
def test_compressing_alone_loads_no_model(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "load", None)
    plan = {"default": "w3g16", "rules": [{"match": "last_mlp", "format": "keep"}]}
    absent = dict.fromkeys(("traces", "importance", "variants", "evaluate"))
    path = tiny.write_recipe(tmp_path / "r.yaml", tiny_checkpoint, tmp_path, **absent, plan=plan)
    row = run(path, tmp_path / "run")["variants"]["compressed"]
    assert row["modules_quantized"] == 11
    assert "perplexity" not in row


@pytest.mark.usefixtures("no_report")
def test_traces_beyond_the_context_are_cut_and_counted(recipe_file: Path, tmp_path: Path) -> None:
    summary = run(recipe_file, tmp_path / "run", "evaluate.max_tokens=60", "importance.max_tokens=60")
    assert summary["evaluation"]["skipped"]["cut_traces"] == 2
    assert summary["evaluation"]["skipped"]["beyond_context"] > 0
    importance = json.loads((tmp_path / "run" / "importance" / "importance.json").read_text())
    assert importance["cut_traces"] == 2
    assert importance["skipped"]["beyond_context"] == summary["evaluation"]["skipped"]["beyond_context"]


@pytest.mark.usefixtures("no_report")
def test_annotations_without_a_scored_span(recipe_file: Path, tmp_path: Path) -> None:
    trace = tiny.TRACES[0] | {
        "annotated": '["pondering"] Wait ["end-section"] ["deduction"] two are gone ["end-section"]'
    }
    path = tiny.write_traces(tmp_path / "t.jsonl", trace)
    with pytest.raises(UserError, match=r"no trace has a span of backtracking.*'unknown_label': 1"):
        run(recipe_file, tmp_path / "run", f"traces.source={path}", "traces.preset=aligned")
    assert not (tmp_path / "run" / "spans.jsonl").exists()


def test_embedding_and_head_go_through_every_stage(tmp_path: Path) -> None:
    """Rules, the short words for GGUF, and a budget with scores of its own, from a recipe to the report."""
    model = tiny.write_checkpoint(
        tmp_path / "model", steps=20, hidden_size=64, intermediate_size=96, tie_word_embeddings=True
    )
    on = tiny.write_traces(tmp_path / "traces.jsonl")
    rule = {"match": "embedding", "format": "w8g32"}
    variants = {
        "original": {"plan": {"default": "keep"}},
        "alone": {"plan": {"default": "keep", "rules": [rule]}},
        "both": {"plan": {"default": "w4g32", "rules": [rule]}},
        "budget": {"plan": {"budget": {"bytes": 60_000, "candidates": ["w4g32", "w8g32"], "outside": ["embedding"]}}},
    }
    more = {
        "importance": None,
        "variants": variants,
        "compress": {"calibration": {"traces": str(on), "samples": 2, "tokens": 16}},
        "sensitivity": {"formats": ["w4g32", "w8g32"], "samples": 1, "outside": ["embedding"]},
        "checkpoint": {"format": "gguf"},
    }
    path = tiny.write_recipe(tmp_path / "tiny.yaml", model, on, **more)
    summary = run(path, tmp_path / "run")
    rows = summary["variants"]
    assert rows["both"]["modules_quantized"] == 15
    assert rows["alone"]["modules_quantized"] == 1
    assert rows["alone"]["effective_bits"] == rows["original"]["effective_bits"] == 16
    assert rows["both"]["bytes"] < rows["alone"]["bytes"] < rows["original"]["bytes"]
    assert rows["budget"]["bytes"] <= 60_000
    for name in ("alone", "both", "budget"):
        plan = json.loads((tmp_path / "run" / "variants" / name / "plan.json").read_text())
        assert next(iter(plan["modules"])) == "model.embed_tokens"
        card = (tmp_path / "run" / "variants" / name / "checkpoint" / "README.md").read_text()
        assert "linear modules and the embedding by rtn" in card
    assert rows["alone"]["bytes_on_disk"] < rows["original"]["bytes_on_disk"]
    brief = {
        **more,
        "variants": {name: {"plan": {"default": format}} for name, format in (("original", "keep"), ("both", "w4g32"))},
        "sensitivity": None,
        "checkpoint": {"format": "gguf", "embedding": "q8_0"},
    }
    short = run(tiny.write_recipe(tmp_path / "short.yaml", model, on, **brief), tmp_path / "short")
    lines = json.loads((tmp_path / "short" / "variants" / "both" / "plan.json").read_text())["modules"]
    assert lines["model.embed_tokens"] == {"format": "q8_0", "method": "ggml", "why": "checkpoint.embedding"}
    assert short["variants"]["original"]["bytes_on_disk"] == rows["original"]["bytes_on_disk"]  # the model itself
