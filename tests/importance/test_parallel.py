"""Several processes, killed processes, failing processes: always the same bytes, or a clear end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_traces

from mixprec import cli
from mixprec.core.processes import share
from mixprec.importance import passes
from mixprec.importance.options import PRESETS, AttributionOptions
from mixprec.models.model import Model
from mixprec.traces import spans, store

MIXPREC = [sys.executable, "-m", "mixprec"]
RESULTS = ("importance.json", "importance_released.json", "steering.safetensors")


@given(st.lists(st.integers(1, 10_000), max_size=40), st.integers(1, 9))
def test_every_trace_has_one_process_and_none_has_much_more_than_another(lengths: list[int], count: int) -> None:
    shares = [share(lengths, rank, count) for rank in range(count)]
    assert sorted(number for mine in shares for number in mine) == list(range(len(lengths)))
    loads = [sum(lengths[number] for number in mine) for mine in shares]
    assert max(loads) - min(loads) <= max(lengths, default=0)


def run(command: Sequence[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run to the end with one thread each; a process that hangs fails the test."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def launch(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run mixprec in two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    return run([*launcher, "--main_process_port", port, "-m", "mixprec", *arguments])


@pytest.fixture(scope="module")
def spans_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spans")
    write_traces(folder / "traces.jsonl")
    found = [spans.char_spans(trace, "paper") for trace in store.load(str(folder / "traces.jsonl"))]
    spans.save_spans(folder / "spans.jsonl", found)
    return folder / "spans.jsonl"


def arguments(spans_file: Path, model: Path, out: Path) -> list[str]:
    return ["attribute", str(spans_file), "--model", str(model), "--out", str(out), "--compare", "released"]


@pytest.fixture(scope="module")
def expected(spans_file: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The results of one undisturbed process."""
    out = tmp_path_factory.mktemp("one")
    done = run([*MIXPREC, *arguments(spans_file, tiny_checkpoint, out)])
    assert done.returncode == 0, done.stderr
    return results(out)


def results(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in RESULTS}


def test_two_processes_end_with_the_same_bytes_and_speak_once(
    spans_file: Path, tiny_checkpoint: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    done = launch(arguments(spans_file, tiny_checkpoint, tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "two") == expected
    assert done.stdout.count("Most important modules") == 1
    assert done.stderr.count("attribute ") == 1


def test_a_process_that_fails_ends_the_others(spans_file: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = {preset: AttributionOptions.of(preset) for preset in PRESETS}
    found = spans.load_spans(spans_file)
    tasks, _ = passes.plan(Model(tiny_checkpoint).load(), found, [()] * len(found), options, 256, "")  # type: ignore[arg-type]
    # A folder in the place of a file that the second process has to write.
    mine = share([passes.work_of(task) for task in tasks], 1, 2)
    blocked = tmp_path / "out" / "traces" / f"{mine[0]:05d}.safetensors"
    blocked.mkdir(parents=True)
    start = time.monotonic()
    done = launch(arguments(spans_file, tiny_checkpoint, tmp_path / "out"))
    assert done.returncode != 0
    assert time.monotonic() - start < 240
    assert f"process 1: {blocked}" in done.stderr
    assert "exitcode  : 2" in done.stderr
    assert not (tmp_path / "out" / "importance.json").exists()


def test_a_killed_run_continues_and_ends_with_the_same_bytes(
    spans_file: Path, tiny_checkpoint: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    killed = f"""
import os
import sys
from mixprec import cli
from mixprec.core.processes import share
from mixprec.importance import passes
from mixprec.importance.options import PRESETS, AttributionOptions
from mixprec.importance.statistics import TraceFile
finish, finished = TraceFile.finish, []
def finish_and_die(self, row_sums):
    finish(self, row_sums)
    finished.append(self)
    if len(finished) == 3:
        os.kill(os.getpid(), {int(signal.SIGKILL)})
TraceFile.finish = finish_and_die
cli.main()
"""
    command = arguments(spans_file, tiny_checkpoint, tmp_path)
    done = run([sys.executable, "-c", killed, *command])
    assert done.returncode == -signal.SIGKILL
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "traces").glob("*")}
    half, *whole = sorted(files)
    assert half.startswith(".00002.safetensors.") and half.endswith(".partial")
    assert whole == ["00000.safetensors", "00001.safetensors"]
    done = run([*MIXPREC, *command])
    assert done.returncode == 0, done.stderr
    assert results(tmp_path) == expected
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "traces").glob("*")}
    assert sorted(after) == [f"{number:05d}.safetensors" for number in range(4)]
    assert all(after[name] == files[name] for name in ("00000.safetensors", "00001.safetensors"))


def test_streamed_weights_end_with_the_same_bytes(
    spans_file: Path, tiny_checkpoint: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    options = ["--stream", "--sweep-gb", "0.0001", "--beyond-linear"]
    # In a process with one thread, as the expected ones: more threads add up in another order.
    done = run([*MIXPREC, *arguments(spans_file, tiny_checkpoint, tmp_path), *options])
    assert done.returncode == 0, done.stderr
    assert results(tmp_path) == expected
    assert (tmp_path / "importance_beyond.json").is_file()


def test_other_verbs_refuse_several_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(sys, "argv", ["mixprec", "run", "quickstart"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    message = " ".join(capsys.readouterr().err.split())
    assert message.startswith("error: process 1: mixprec run works in one process; of all verbs only attribute")
