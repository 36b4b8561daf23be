"""Files of Label Studio and inspect_ai, as those programs write them."""

from __future__ import annotations

import contextlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import tiny

import mixprec as mp
from mixprec.traces import store
from mixprec.traces.spans import CharSpan

OUTPUT = "Okay 🙂, four are left. Wait, that is wrong. I recall a rule."
WAIT = OUTPUT.index("Wait")


def utf16(at: int) -> int:
    """A place as JavaScript counts."""
    return len(OUTPUT[:at].encode("utf-16-le")) // 2


def region(text: str, /, *labels: str, js: bool = False, **more: Any) -> dict[str, Any]:
    start, end = OUTPUT.index(text), OUTPUT.index(text) + len(text)
    places = {"start": utf16(start), "end": utf16(end)} if js else {"start": start, "end": end}
    value = {**places, "text": text, "labels": list(labels), **more}
    return {"id": "r1", "from_name": "label", "to_name": "text", "type": "labels", "origin": "manual", "value": value}


def task(*regions: dict[str, Any], by: int = 1, **data: Any) -> dict[str, Any]:
    return {
        "id": 7,
        "data": {"prompt": "How many?\n", "output": OUTPUT, **data},
        "annotations": [{"id": 3, "completed_by": by, "result": list(regions), "was_cancelled": False}],
        "predictions": [],
        "project": 2,
    }


def write(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


REGIONS = (region("Wait, that is wrong.", "Backtracking"), region("I recall a rule.", "adding-knowledge", "Musing"))


@pytest.mark.parametrize("js", [False, True])
def test_label_studio_whatever_it_counts_in(tmp_path: Path, js: bool) -> None:
    regions = [
        region("Wait, that is wrong.", "Backtracking", js=js),
        region("I recall a rule.", "adding knowledge", js=js),
    ]
    found = mp.import_traces(write(tmp_path / "project.json", [task(*regions)]), tmp_path / "spans.jsonl")
    (each,) = mp.Spans.load(tmp_path / "spans.jsonl")
    assert each.trace == store.Trace("7", "", "How many?\n", OUTPUT)
    assert [(s.behaviour, each.trace.text[s.start : s.end]) for s in each.spans] == [
        ("backtracking", "Wait, that is wrong."), ("adding_knowledge", "I recall a rule.")
    ]  # fmt: skip
    assert each.by == {"kind": "import", "program": "Label Studio"}
    assert found.spans.traces == (each,)


def test_unknown_labels_are_counted_and_other_controls_passed_over(tmp_path: Path) -> None:
    choice = {"from_name": "quality", "to_name": "text", "type": "choices", "value": {"choices": ["good"]}}
    blank = region("four", js=False)
    file = write(tmp_path / "p.json", [task(*REGIONS, choice, blank)])
    found = mp.import_traces(file, tmp_path / "spans.jsonl")
    assert found.spans.summary.skipped == {"unknown_label": 1, "unlabelled": 1}
    assert sum(found.spans.summary.spans.values()) == 2


def test_tasks_without_annotation_are_left_out_and_told(tmp_path: Path) -> None:
    bare, skipped = task(id="b"), task(id="c")
    bare["annotations"], skipped["annotations"][0]["was_cancelled"] = [], True
    done = task(*REGIONS, id="a")
    found = mp.import_traces(write(tmp_path / "p.json", [bare, done, skipped]), tmp_path / "spans.jsonl")
    assert [each.trace.id for each in found.spans] == ["a"]
    assert found.left_out == {"not annotated": 2, "skipped by its annotator": 1}
    assert "left out: {'not annotated': 2" in str(found)


def test_several_annotators_are_a_choice(tmp_path: Path) -> None:
    both = task(*REGIONS)
    both["annotations"] += task(region("four are left.", "deduction"), by=9)["annotations"]
    file = write(tmp_path / "p.json", [both])
    with pytest.raises(mp.UserError, match=r"task 7: 2 annotations, by 1, 9; choose one annotator with --by"):
        mp.import_traces(file, tmp_path / "spans.jsonl")
    (each,) = mp.import_traces(file, tmp_path / "spans.jsonl", by="9").spans
    assert [span.behaviour for span in each.spans] == ["deduction"]


def test_json_min_and_traces_that_lie_elsewhere(tmp_path: Path) -> None:
    traces = tiny.write_traces(tmp_path / "traces.jsonl")
    first = tiny.TRACES[0]
    start = len(first["prompt"]) + first["output"].index("Wait")
    rows = [
        {
            "id": 4,
            "text": first["prompt"] + first["output"],
            "label": [{"start": start, "end": start + 5, "labels": ["Backtracking"]}],
            "annotator": 1,
            "annotation_id": 11,
            "created_at": "2026-01-15T10:00:00Z",
        }
    ]
    file = write(tmp_path / "min.json", rows)
    (each,) = mp.import_traces(file, tmp_path / "spans.jsonl", traces=traces).spans
    assert each.trace.id == "toy/apples-0"
    assert each.spans == [CharSpan("backtracking", start, start + 5)]
    write(tmp_path / "min.json", [rows[0] | {"text": "Another text."}])
    with pytest.raises(mp.UserError, match=r"task 4: data\.text is of none of the traces given"):
        mp.import_traces(file, tmp_path / "spans.jsonl", traces=traces)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([task(region("Wait", "backtracking", text="What"))], r"task 7: the region .* isn't what stands there"),
        ([task(region("Wait", "backtracking", end=999))], "isn't what stands there"),
        ([task(region("Wait", "backtracking", start="/div[1]/text()[1]"))], "label plain text, not HTML"),
        ([task(*REGIONS), task(*REGIONS)], "'7' stands twice"),
        ([{**task(*REGIONS), "data": {"image": "a.png"}}], "no text under output.*image"),
        ([task(*REGIONS) | {"annotations": []}], "no trace in it; left out: {'not annotated': 1}"),
        ([{"a": 1}], "neither an export of Label Studio .* nor a log of inspect_ai"),
        ({"a": 1}, "neither an export"),
        ([], "neither an export"),
        ({"eval": {}, "status": "success"}, "no samples"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(mp.UserError, match=message):
        mp.import_traces(write(tmp_path / "p.json", data), tmp_path / "spans.jsonl")
    assert not (tmp_path / "spans.jsonl").exists()


def sample(number: int = 1, epoch: int = 1, **more: Any) -> dict[str, Any]:
    answer = [{"type": "reasoning", "reasoning": "Hm, 4.", "redacted": False}, {"type": "text", "text": "Four."}]
    return {
        "id": number,
        "epoch": epoch,
        "input": "2 + 2?",
        "target": "4",
        "messages": [
            {"id": "s", "role": "system", "content": "Be brief."},
            {"id": "u", "role": "user", "content": "2 + 2?", "source": "input"},
            {"id": "a", "role": "assistant", "content": answer, "source": "generate", "model": "m"},
        ],
        "output": {"model": "m", "choices": [{"message": {"role": "assistant", "content": answer}}]},
        "scores": {"match": {"value": "C", "answer": "Four."}},
        "metadata": {},
        "attachments": {},
        **more,
    }


HEADER = {
    "version": 2,
    "status": "success",
    "eval": {"task": "sums", "model": "openai/m", "dataset": {}},
    "results": {},
}


def write_log(path: Path, samples: list[dict[str, Any]]) -> Path:
    if path.suffix == ".json":
        return write(path, HEADER | {"samples": samples})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("_journal/start.json", json.dumps({"version": 2, "eval": HEADER["eval"], "plan": {}}))
        for each in samples:
            archive.writestr(f"samples/{each['id']}_epoch_{each['epoch']}.json", json.dumps(each))
        archive.writestr("summaries.json", "[]")
        archive.writestr("header.json", json.dumps(HEADER))
    return path


@pytest.mark.parametrize("name", ["log.eval", "log.json"])
def test_logs_of_inspect_ai(tmp_path: Path, name: str) -> None:
    empty = sample(2, output={"choices": []}, messages=[{"role": "user", "content": "?"}])
    failed = sample(3, error={"message": "x"}, messages=[{"role": "user", "content": "?"}], output={})
    found = mp.import_traces(write_log(tmp_path / name, [sample(), empty, failed]), tmp_path / "traces.jsonl")
    (trace,) = store.load(str(tmp_path / "traces.jsonl"))
    assert trace == store.Trace("sums/1", "sums", "Be brief.\n\n2 + 2?", "<think>\nHm, 4.\n</think>\n\nFour.")
    assert found.left_out == {"no answer in text": 1, "ended in an error": 1}
    assert "prompts are the messages' texts" in str(found) and "openai/m" in str(found)


def test_epochs_attachments_and_annotations(tmp_path: Path) -> None:
    text = 'Hm, ["backtracking"] no. ["end-section"]'
    far = sample(1, 2, attachments={"abc": "No. " * 40}, metadata={"annotated": text})
    far["messages"][2]["content"] = "attachment://abc"
    mp.import_traces(write_log(tmp_path / "log.eval", [sample(), far]), tmp_path / "traces.jsonl")
    traces = {trace.id: trace for trace in store.load(str(tmp_path / "traces.jsonl"))}
    assert set(traces) == {"sums/1-epoch-1", "sums/1-epoch-2"}
    assert traces["sums/1-epoch-2"].output == "No. " * 40 and traces["sums/1-epoch-2"].annotated == text
    assert traces["sums/1-epoch-1"].annotated is None


def test_prompts_in_a_models_chat_template(tmp_path: Path) -> None:
    loaded = tiny.build()
    loaded.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ '<think>\n' }}"
    folder = tmp_path / "model"
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    found = mp.import_traces(write_log(tmp_path / "l.json", [sample()]), tmp_path / "t.jsonl", model=str(folder))
    (trace,) = store.load(str(tmp_path / "t.jsonl"))
    assert trace.prompt == "<system>Be brief.<user>2 + 2?<think>\n"
    assert trace.output == "Hm, 4.\n</think>\n\nFour."  # the prompt opened the thinking already
    assert "messages' texts" not in str(found)


PICTURE = {"role": "assistant", "content": [{"type": "image", "image": "data:"}]}
HIDDEN = {"role": "assistant", "content": [{"type": "reasoning", "reasoning": "gAAAA", "redacted": True}]}


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "no samples"),
        ([sample(messages=[{"role": "user", "content": "?"}, PICTURE])], "sample 1: .* part of type 'image'"),
        ([sample(messages=[{"role": "user", "content": "?"}, HIDDEN])], "thinking is encrypted"),
        ([sample(messages=[{"role": "assistant", "content": "attachment://gone"}])], "also among the sample's"),
        ([sample(metadata={"annotated": "a"}, scores={"s": {"metadata": {"annotated": "b"}}})], "2 annotations"),
    ],
)  # fmt: skip
def test_samples_that_are_refused(tmp_path: Path, samples: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(mp.UserError, match=message):
        mp.import_traces(write_log(tmp_path / "log.eval", samples), tmp_path / "traces.jsonl")


def test_archives_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "other.eval"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hi")
    with pytest.raises(mp.UserError, match="an archive that is no log of inspect_ai"):
        mp.import_traces(path, tmp_path / "traces.jsonl")
    write_log(path, [sample()])
    raw = bytearray(path.read_bytes())
    at = raw.index(b"samples/1_epoch_1.json") + 60
    raw[at : at + 20] = b"\xff" * 20
    path.write_bytes(raw)
    with pytest.raises(mp.UserError, match="is damaged"):
        mp.import_traces(path, tmp_path / "traces.jsonl")
    write_log(path, [sample()])
    whole = path.read_bytes()
    for at in [place for place in range(len(whole)) if place % 7 == 0] + [whole.index(b"PK\x01\x02")]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with contextlib.suppress(mp.UserError):  # some bytes, such as dates, say nothing
            mp.import_traces(path, tmp_path / "traces.jsonl")
    with pytest.raises(mp.UserError, match=r"a damaged archive .*; copy the log again"):
        mp.import_traces(path, tmp_path / "traces.jsonl")
    with pytest.raises(mp.UserError, match="no such file"):
        mp.import_traces(tmp_path / "gone.eval", tmp_path / "traces.jsonl")
