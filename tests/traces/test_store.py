"""Trace files: what is refused, and a recorder that continues behind a kill without losing a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixprec.core.errors import UserError
from mixprec.traces import store
from mixprec.traces.recorder import Making, Recorder
from mixprec.traces.store import Trace

TRACES = [Trace("toy/a", "toy", "Prompt?\n", "Größe: 3\u2028m\n"), Trace("b", "", "", "x{}")]


MAKING = Making("m", "id", "float32", False, 0, 64, 0.6, 0.95)


def recorder_of(path: Path, *traces: Trace, **changes: Any) -> Recorder:
    return Recorder(path, MAKING._replace(**changes), {trace.id: trace.prompt for trace in traces or TRACES})


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(**changes: Any) -> dict[str, Any]:
    return {"id": "a", "prompt": "p", "output": "o"} | changes


def test_traces_of_several_datasets_may_share_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", row(dataset="x"), row(dataset="y"), row(), row(id="b", dataset=None, extra=1))
    assert [(trace.id, trace.dataset) for trace in store.load(str(path))] == [
        ("x/a", "x"), ("y/a", "y"), ("a", ""), ("b", "")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(), row(id="b", output=None)], "trace 2: key 'output' is missing or no text"),
        ([row(id=3)], "trace 1: key 'id' is missing or no text"),
        ([{"id": "a", "output": "o"}], "trace 1: key 'prompt' is missing"),
        ([row(output=" \n")], r"trace 1 \(a\): output is empty"),
        ([row(annotated=["x"])], "trace 1: key 'annotated' is no text"),
        ([row(), row(id="b"), row()], "trace 3: id 'a' stands twice"),
        ([row(id="x/a"), row(dataset="x")], "trace 2: id 'x/a' stands twice"),
        ([], "no traces in this file"),
    ],
)
def test_what_is_no_trace(tmp_path: Path, rows: list[Any], message: str) -> None:
    path = write(tmp_path / "t.jsonl", *rows)
    with pytest.raises(UserError, match=rf"t\.jsonl: {message}"):
        store.load(str(path))


def test_where_traces_lie(tmp_path: Path) -> None:
    for name in store.BUNDLED_SETS:
        traces = store.load(f"bundled:{name}")
        assert len(traces) >= 12
        assert all(trace.annotated for trace in traces)
    assert not {t.id for t in store.load("bundled:attribution")} & {t.id for t in store.load("bundled:held_out")}
    for source, message in (
        ("bundled:other", "bundled sets are attribution, held_out"),
        (str(tmp_path / "gone"), "no such file"),
        (str(tmp_path), "no such file"),
    ):
        with pytest.raises(UserError, match=message):
            store.load(source)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.text(max_size=4), st.text(max_size=6), st.text(max_size=6), st.text(min_size=1, max_size=9)),
        unique_by=lambda t: f"{t[0]}/{t[1]}" if t[0] else t[1],
        max_size=4,
    )
)
def test_what_is_recorded_is_loaded(tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[str, ...]]) -> None:
    path = tmp_path_factory.mktemp("record") / "t.jsonl"
    traces = [Trace(f"{d}/{i}" if d else i, d, p, o) for d, i, p, o in parts if o.strip()]
    for trace in traces:
        recorder = recorder_of(path, *traces)  # a process of its own for every trace
        assert trace.id not in recorder.done
        recorder.write(trace)
    if traces:
        assert store.load(str(path)) == traces
        assert recorder_of(path, *traces).done == {trace.id for trace in traces}


def test_a_kill_at_any_byte_loses_one_line_at_most(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    for trace in TRACES:
        recorder_of(path).write(trace)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        recorder = recorder_of(path)
        assert recorder.done >= {t.id for t, end in zip(TRACES, (first, len(whole)), strict=True) if cut >= end}
        for trace in TRACES:
            if trace.id not in recorder.done:
                recorder.write(trace)
        assert path.read_bytes() == whole, cut


@pytest.mark.parametrize("content", ["my notes", "my notes\nin two lines", '{"id": "a"', '{"prompt": "x"}', "[1]"])
def test_a_file_of_something_else_is_refused_and_stays(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(UserError, match=r"notes\.txt"):
        recorder_of(path)
    assert path.read_text().rstrip("\n") == content


@pytest.mark.parametrize("content", [json.dumps(row()), json.dumps(row(made="by hand")) + "\n"])
def test_traces_that_do_not_say_what_made_them_are_refused_and_stay(tmp_path: Path, content: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=r"t\.jsonl: trace 'a' doesn't say what made it.*give another --out"):
        recorder_of(path)
    assert path.read_text().rstrip("\n") == content.rstrip("\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identity": "other", "model": "n"}, r"identity 'm \(id\)', this run has 'n \(other\)'"),
        ({"seed": 1}, "seed 0, this run has 1"),
        ({"dtype": "bfloat16"}, "dtype 'float32', this run has 'bfloat16'"),
        ({"chat_template": True}, "chat_template False, this run has True"),
        ({"max_new_tokens": 65}, "max_new_tokens 64, this run has 65"),
        ({"temperature": 0.0}, "temperature 0.6, this run has 0.0"),
        ({"top_p": 1.0}, "top_p 0.95, this run has 1.0"),
    ],
)
def test_traces_of_another_origin_never_share_a_file(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "t.jsonl"
    recorder_of(path).write(TRACES[0])
    before = path.read_bytes()
    with pytest.raises(UserError, match=rf"t\.jsonl: trace 'toy/a' was made with {message}; give another --out"):
        recorder_of(path, **changes)
    assert path.read_bytes() == before
    # Every setting is one of these cases, and the same weights under another name are the same model.
    assert recorder_of(path, model="elsewhere").done == {"toy/a"}


def test_a_prompt_whose_text_changed_is_refused_and_one_that_is_gone_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    recorder_of(path).write(TRACES[0])
    with pytest.raises(UserError, match="trace 'toy/a' was made from another text than its prompt has now"):
        recorder_of(path, Trace("toy/a", "toy", "Another prompt?", ""))
    there = recorder_of(path, TRACES[1])
    assert (there.done, there.others) == ({"toy/a"}, {"toy/a"})
    assert not recorder_of(path).others
