"""The log of a run, and the verbs on what lies on the disk: status, verify, reproduce."""

from __future__ import annotations

import json
import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import tiny

from mixprec import cli, pipeline, recipe
from mixprec.core import events, locks, progress
from mixprec.core.errors import UserError
from mixprec.pipeline.reproduce import reproduce
from mixprec.pipeline.status import status
from mixprec.pipeline.verify import verify


@pytest.fixture(scope="module")
def made(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with one variant, only read."""
    folder = tmp_path_factory.mktemp("watching")
    path = tiny.write_recipe(
        folder / "r.yaml", tiny_checkpoint, tiny.write_traces(folder / "traces.jsonl"), importance=None, traces=None,
        variants={"uniform": {"plan": {"default": "w2g16"}}},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("mixprec.pipeline.run.write_report", lambda _: None)
        pipeline.Run(recipe.load(path), path.read_text(), "r", folder / "run", None).run()
    return folder / "run"


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "run")


def log(folder: Path, *rows: dict[str, object]) -> Path:
    folder.mkdir(exist_ok=True)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    lines = [{"time": (start + timedelta(seconds=10 * n)).isoformat(), **row} for n, row in enumerate(rows)]
    (folder / events.NAME).write_text("".join(json.dumps(row) + "\n" for row in lines))
    return folder


def at(seconds: float) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


# The log


def test_a_run_writes_what_happens(made: Path) -> None:
    rows = events.read(made)
    assert rows[0]["event"] == "begin" and rows[-1]["event"] == "end" and rows[-1]["how"] == "done"
    assert [name for name, _ in rows[0]["stages"]] == ["reference", "compress/uniform", "evaluate/uniform"]
    stages = [(row["name"], row["state"]) for row in rows if row["event"] == "stage" and row["state"] != "kept"]
    names = ("annotate/evaluation", "reference", "compress/uniform", "evaluate/uniform")
    assert stages == [(name, state) for name in names for state in ("begun", "made")]
    steps = [row for row in rows if row["event"] == "step" and row["what"] == "compress uniform"]
    assert (steps[-1]["done"], steps[-1]["total"], steps[-1]["unit"]) == (14, 14, "modules")
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)
    assert all(row["event"] in ("begin", "stage", "step", "notice", "end") for row in rows)


def test_steps_are_told_every_few_seconds_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("mixprec.core.events.time.monotonic", lambda: now)
    with events.logged(tmp_path), progress.bar("work", 100, "things") as advance:
        for _ in range(100):
            now += 0.25
            advance(1)
    done = [row["done"] for row in events.read(tmp_path) if row["event"] == "step"]
    assert done == [1, *range(9, 100, 8), 100]


def test_the_end_is_told_as_it_is(tmp_path: Path) -> None:
    for problem, how in ((KeyboardInterrupt(), "stopped"), (UserError("no such thing"), "failed")):
        with pytest.raises(type(problem)), events.logged(tmp_path):
            raise problem
        assert events.read(tmp_path)[-1]["how"] == how
    assert events.read(tmp_path)[-1]["why"] == "no such thing"


def test_a_log_that_cannot_be_written_stops_no_work(tmp_path: Path) -> None:
    (tmp_path / events.NAME).mkdir()
    with events.logged(tmp_path):
        events.tell("stage", name="a", state="begun")
    assert events.read(tmp_path) == []


def test_a_log_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / events.NAME).symlink_to(precious)
    with pytest.raises(UserError, match="is a link"), locks.folder(tmp_path / "run"), events.logged(tmp_path / "run"):
        pass
    assert precious.read_text() == "mine"


# status

BEGIN = {"event": "begin", "stages": [["attribute", 10.0], ["compress/a", 20.0], ["evaluate/a", 40.0]]}
ATTRIBUTED = ({"event": "stage", "name": "attribute", "state": "begun"},
              {"event": "stage", "name": "attribute", "state": "made", "seconds": 20.0})  # fmt: skip
COMPRESSING = {"event": "stage", "name": "compress/a", "state": "begun"}


def test_a_run_that_is_at_work(tmp_path: Path) -> None:
    step = {"event": "step", "what": "compress a", "done": 5, "total": 20, "unit": "modules"}
    log(tmp_path / "run", BEGIN, *ATTRIBUTED, COMPRESSING, step)
    with locks.folder(tmp_path / "run"):
        found = status(tmp_path / "run", at(60))
        assert found.state == "running" and "process" in str(found.who)
    assert (found.done, found.running, list(found.left)) == ({"attribute": 20.0}, "compress/a", ["evaluate/a"])
    # Begun 30 s ago, a quarter is done: 90 s; and 40 s of the estimate, twice as slow as it.
    assert found.seconds_left == pytest.approx(90 + 80) and found.quiet == 20
    killed = status(tmp_path / "run", at(60))
    assert (killed.state, killed.who, killed.seconds_left) == ("killed", None, None)


def test_time_left_without_steps_is_by_the_estimate(tmp_path: Path) -> None:
    log(tmp_path / "run", BEGIN, *ATTRIBUTED, COMPRESSING)
    with locks.folder(tmp_path / "run"):
        assert status(tmp_path / "run", at(40)).seconds_left == pytest.approx(2 * 20 - 10 + 80)
    log(tmp_path / "run", {"event": "begin", "stages": [["attribute", None]]})
    with locks.folder(tmp_path / "run"):
        assert status(tmp_path / "run", at(5)).seconds_left is None


def test_the_last_run_counts_and_half_a_line_does_not(tmp_path: Path) -> None:
    failed, kept = (
        {"event": "end", "how": "failed", "why": "x"},
        {"event": "stage", "name": "attribute", "state": "kept"},
    )
    folder = log(tmp_path / "run", BEGIN, *ATTRIBUTED, failed, BEGIN, kept, {"event": "end", "how": "stopped"})
    with (folder / events.NAME).open("a") as file:
        file.write('[1]\n{"time": 3, "event": "end"}\n{"time": "2026')
    found = status(folder, at(60))
    assert (found.state, found.done, found.why) == ("stopped", {"attribute": None}, "")
    (tmp_path / "empty").mkdir()
    for wrong, message in ((tmp_path / "none", "no such folder"), (tmp_path / "empty", "holds no events.jsonl")):
        with pytest.raises(UserError, match=message):
            status(wrong)


def test_status_in_the_terminal(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mix(monkeypatch, "status", made) == 0
    told = capsys.readouterr().out
    assert "done" in told and "compress/uniform" in told and "continues" not in told
    log(tmp_path / "run", BEGIN, {**COMPRESSING, "name": "\x1b[31mred[/b]"})
    assert mix(monkeypatch, "status", tmp_path / "run") == 0
    told = capsys.readouterr().out
    assert "killed" in told and "the same command continues it" in told
    assert "\x1b" not in told and "[/b]" in told


def mix(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["mixprec", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


# verify


def test_a_run_and_a_checkpoint_are_as_they_were_written(made: Path) -> None:
    found = verify(made)
    assert found.files > 15
    assert found.unknown == ["variants/uniform/checkpoint/README.md"]
    assert verify(made / "variants" / "uniform" / "checkpoint").unknown == ["README.md"]


@pytest.mark.parametrize(
    "name",
    [
        "summary.json", "recipe.yaml", "evaluation/reference.safetensors", "evaluation/spans.jsonl",
        "variants/uniform/plan.json", "variants/uniform/checkpoint/model.safetensors", ".stages/reference.json",
        "variants/uniform/checkpoint/tokenizer.json", "variants/uniform/checkpoint/mixprec.json",
    ],
)  # fmt: skip
def test_one_bit_is_found(copied: Path, name: str) -> None:
    content = bytearray((copied / name).read_bytes())
    content[-20] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(UserError, match=Path(name).name):
        verify(copied)


def test_all_that_is_wrong_is_told_at_once(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "variants" / "uniform" / "result.json").unlink()
    (copied / "variants" / "uniform" / "quality.json").write_text("{}")
    (copied / "mine.txt").write_text("x")
    assert mix(monkeypatch, "verify", copied) == 2
    told = capsys.readouterr().err
    assert "2 problems" in told and "result.json: missing" in told and "quality.json: was edited" in told
    with pytest.raises(UserError, match=r"neither mixprec\.json nor \.stages is there"):
        verify(tmp_path)


# reproduce


def test_a_run_comes_out_the_same(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mixprec.pipeline.run.write_report", lambda _: None)
    assert mix(monkeypatch, "reproduce", made, "--out", tmp_path / "again") == 0
    assert "all with the bytes of" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr("mixprec.pipeline.reproduce.VERSION", "9.9")
    (tmp_path / "again" / "added.txt").write_text("x")
    found = reproduce(made, tmp_path / "again")
    assert found.added == ["added.txt"] and not found.other and not found.missing and not found.equal
    assert found.unlike == {"mixprec": ("0.1.0", "9.9")}


def test_what_is_another_is_named(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixprec.pipeline.run.write_report", lambda _: None)
    with (copied / "variants" / "uniform" / "checkpoint" / "config.json").open("a") as file:
        file.write("\n")
    assert reproduce(copied, tmp_path / "again").other == ["variants/uniform/checkpoint/config.json"]
    with pytest.raises(UserError, match="is the run itself"):
        reproduce(copied, copied)
    with (copied / "recipe.yaml").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="is not the recipe that"):
        reproduce(copied, tmp_path / "again")
