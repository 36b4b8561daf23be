"""What a report reads of a run's folder, and what it says of one that is unfinished, damaged or small."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_html import Page

from mixprec.core.errors import UserError
from mixprec.importance.shift import shift
from mixprec.report import origin
from mixprec.report.folder import RunFolder, read_run
from mixprec.report.html import render_report, write_report
from mixprec.report.outputs import CHARACTERS, read_outputs, shown
from mixprec.report.shift import write_shift
from mixprec.report.tokens import viewer
from mixprec.traces.spans import save_spans

Make = Callable[..., RunFolder]


@pytest.fixture
def folder(tmp_path: Path, make_run: Make) -> Path:
    """A run on disk with layouts, traces and the KL of their tokens."""
    run = make_run(8)
    (tmp_path / "summary.json").write_text(json.dumps({**run.summary, "benchmarks": None}))
    for parts, file in ((run.layouts, "layout.json"), (run.token_kl, "tokens.json")):
        for name, content in parts.items():
            path = tmp_path / "variants" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
    (tmp_path / "evaluation").mkdir()
    save_spans(tmp_path / "evaluation" / "spans.jsonl", list(run.held_out))
    return tmp_path


def test_all_parts_are_read(folder: Path, make_run: Make) -> None:
    found, made = read_run(folder), make_run(8)
    assert found.layouts == made.layouts and found.held_out == made.held_out
    assert found.token_kl == json.loads(json.dumps(made.token_kl))
    text = Page(write_report(folder).read_text()).all_text()
    assert "Where the bits went" in text and "2 of 2 traces" in text and "the head is the embedding" not in text


def test_a_folder_that_is_no_finished_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no finished run \(summary\.json is missing\); run its recipe again"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        read_run(tmp_path / "none")


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "edit", "told"),
    [
        ("layout.json", lambda found: found["cells"][1].update(bits="three"), "bits"),
        ("layout.json", lambda found: found["cells"][1].update(layer=99), "a layer beyond the 8"),
        ("layout.json", lambda found: found.update(schema_version=9), "schema_version is 9"),
        ("tokens.json", lambda found: found["traces"][0]["tokens"][0].pop(), "tokens"),
        ("tokens.json", lambda found: found["traces"][0]["tokens"][0].__setitem__(0, 0.5), "characters"),
        ("tokens.json", lambda found: found["traces"][0]["tokens"].pop(), "is not of the traces"),
        ("tokens.json", lambda found: found.update(of=5), "is not of the traces"),
    ],
)
def test_a_damaged_part_is_named(folder: Path, file: str, edit: Callable[[dict[str, Any]], object], told: str) -> None:
    change(folder / "variants" / "w3" / file, edit)
    with pytest.raises(UserError, match=told) as problem:
        write_report(folder)
    assert file in str(problem.value) and not (folder / "report.html").exists()


def test_a_run_of_an_earlier_mixprec_lacks_pictures_and_says_so(folder: Path) -> None:
    for path in folder.glob("variants/*/*.json"):
        if path.parent.name != "w3" or path.name == "tokens.json":
            path.unlink()
    text = Page(write_report(folder).read_text()).all_text()
    assert "Without a picture: bf16, w3_last_mlp" in text and "Where in a trace" not in text


def test_one_variant_alone_makes_a_page(make_run: Make) -> None:
    run = make_run(8)
    summary = {**run.summary, "variants": {"w3": run.summary["variants"]["w3"]}, "differences": {}, "benchmarks": None}
    page = Page(render_report(run._replace(summary=summary, layouts={"w3": run.layouts["w3"]}, outputs={})))
    text = page.all_text()
    assert "w3 compresses 210 modules" in text and "Where the bits went" in text and "Size against damage" not in text


def test_a_trace_ends_where_its_tokens_do(make_run: Make) -> None:
    run = make_run(8)
    cut = {"of": 2, "traces": [{"tokens": row["tokens"][:5], "of": 9} for row in run.token_kl["w3"]["traces"]]}
    found = viewer(run._replace(token_kl={"w3": cut}))
    assert found is not None and found.cut == 2
    (first, _) = found.data["traces"]
    assert first["text"] == "How many 🍐?\nOkay 🙂. Wait," and first["spans"] == [] and len(first["kl"]["w3"]) == 5


# Outputs


def write_generations(folder: Path, outputs: dict[str, str], *, model: str = "m", under: str = "now") -> None:
    sampling = {"max_new_tokens": 64, "temperature": 0.6, "top_p": 0.95}
    lines = [
        {
            "benchmark": "folio", "id": name, "seed": 0, "rows": "r", "model": model, "prompts": "paper",
            "sampling": sampling, "engine": {}, "output": text, "finish": "length", "tokens": 64, "prompt_tokens": 9,
        }
        for name, text in outputs.items()
    ]  # fmt: skip
    path = folder / "generations" / under / "folio.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_benchmarks(folder: Path, benchmarks: dict[str, Any], outcomes: dict[str, str]) -> None:
    per_question = {name: {"accuracy": [0.0], "outcomes": [outcome]} for name, outcome in outcomes.items()}
    protocol = {
        "seeds": [0],
        "prompts": "paper",
        "limit": None,
        "max_new_tokens": 64,
        "temperature": 0.6,
        "top_p": 0.95,
    }
    result = {"schema_version": 1, "model": "m", "protocol": protocol, "scoring_rules": 1, "labels": {}}
    entry = benchmarks | {"title": "FOLIO", "per_question": per_question}
    (folder / "benchmarks.json").write_text(json.dumps(result | {"benchmarks": {"folio": entry}}))


#: What benchmarks.json needs beside the questions.
ENTRY: dict[str, Any] = {
    "rows": "r", "paper_questions": False, "at_k": {}, "outcomes": {"none": 0}, "compute": {"shares": {}},
    "diagnosis": {"n": 1, "cut": 1, "collapsed": 0, "thinking": {"open": 0}, "gibberish": None, "tokens": None},
}  # fmt: skip


def test_outputs_of_the_result_are_read_and_no_others(tmp_path: Path) -> None:
    write_benchmarks(tmp_path, ENTRY, {"q1": "correct", "q2": "none"})
    write_generations(tmp_path, {"q1": "Now.", "q2": "Too.", "q3": "beyond the limit"})
    write_generations(tmp_path, {"q1": "Then."}, model="of an earlier plan", under="before")
    found = read_outputs(tmp_path)
    assert {key.id: record.output for (_, key), record in found.records.items()} == {"q1": "Now.", "q2": "Too."}
    assert {key.id: outcome for (_, key), outcome in found.outcomes.items()} == {"q1": "correct", "q2": "none"}


def test_pairs_that_are_scored_differently_come_first_and_loops_are_marked(tmp_path: Path) -> None:
    loop = "It is so. " * 900
    for name, outcomes, texts in (
        ("original", {"q1": "wrong", "q2": "correct"}, {"q1": "a", "q2": "b"}),
        ("w3", {"q1": "wrong", "q2": "none"}, {"q1": "c", "q2": "Well, well, well. Let me see now. " * 3 + loop}),
    ):
        (tmp_path / name).mkdir()
        write_benchmarks(tmp_path / name, ENTRY, outcomes)
        write_generations(tmp_path / name, texts)
    outputs = {name: read_outputs(tmp_path / name) for name in ("original", "w3")}
    (found,) = shown(outputs, "original")
    assert [pair.question for pair in found.pairs] == ["q2", "q1"] and found.of == 2
    variant = found.pairs[0].variant
    assert variant.collapsed and variant.loops is not None and "It is so." in variant.text[variant.loops :][:12]
    assert variant.of > len(loop) and len(variant.text) < CHARACTERS + 60 and "characters" in variant.text
    assert [question for _, question, _, _ in found.collapsed] == ["q2"] and found.collapsed_of == 1
    assert shown(outputs, "none") == []


# Where it comes from


def test_the_command_repeats_the_run(make_run: Make) -> None:
    run = make_run(4)
    assert origin.command(run) == "mixprec run quickstart/recipe.yaml --out quickstart_again"
    with_data = run._replace(name="my run", recipe="# data:x\ntraces: {source: data:benchmarks/x.jsonl}\n")
    assert origin.command(with_data) == "mixprec run 'my run/recipe.yaml' --out 'my run_again' --data FOLDER"
    assert origin.command(run._replace(recipe=None)) == ""
    assert origin.command(run._replace(recipe="# on data:x\nmodel: {id: x}\n")).endswith("_again")


def test_provenance_reads_as_sentences(make_run: Make) -> None:
    told = origin.in_words(make_run(4))
    assert told[0] == "Made by mixprec 0.1.0 (git revision 0123456789ab) with torch 2.13.0, transformers 5.23.0."
    assert told[1].endswith("the fingerprint of its files begins with b179c9520000.")
    assert told[2].startswith("Every variant was compared with the original, token by token, on 8 held-out traces")
    assert told[3] == "Importance is from 24 annotated traces, by the rules of the preset paper."
    assert origin.in_words(RunFolder("r", {"schema_version": 1})) == []


def test_what_a_run_began_with_is_told(make_run: Make) -> None:
    run = make_run(4)
    began = {
        "distilled": {"traces": 20, "tokens": 7449, "validation_traces": 4, "steps": 10, "before": 2.97, "after": 2.65},
        "generated": {"traces": 24, "prompts": "bundled:held_out", "max_new_tokens": 384},
        "annotated": {"own": True, "by": "classifier", "judge": None},
    }
    told = origin.in_words(run._replace(summary={**run.summary, **began}))
    assert " became by distillation; the fingerprint of its files begins with b179c9520000." in told[1]
    assert told[1].endswith(
        "It learned from 20 traces (7,449 tokens) in 10 steps: the loss on 4 others went from 2.97 to 2.65 nats per "
        "token."
    )
    assert told[3] == (
        "Importance is from 24 traces that the model wrote for the prompts of bundled:held_out, at most 384 tokens "
        "each, by the rules of the preset paper; mixprec's classifier annotated them."
    )
    judged = {"annotated": {"own": False, "by": "judge", "judge": "gpt-oss"}}
    told = origin.in_words(run._replace(summary={**run.summary, **judged}))
    assert told[3].endswith("24 traces, by the rules of the preset paper; the judge gpt-oss annotated them.")


def test_a_shift_in_the_runs_folder_is_shown(folder: Path, make_importance: Callable[..., dict[str, Any]]) -> None:
    made = shift(make_importance(8), make_importance(8, seed=1), ("original", "w3"))
    write_shift(made, "net", folder / "shift")
    assert "net change from original to w3" in Page(write_report(folder).read_text()).all_text()
    change(folder / "shift" / "shift.json", lambda found: found["behaviours"]["backtracking"]["net"].pop())
    with pytest.raises(UserError, match=r"shift\.json.*not one value for each module"):
        write_report(folder)
