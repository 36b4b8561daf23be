"""Locks: one process at work in one place, who it is, free again behind a kill."""

from __future__ import annotations

import errno
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mixprec.core import artifacts, locks, publish
from mixprec.core.errors import UserError

_HOLD = """
import sys, time
from pathlib import Path
from mixprec.core import locks
with getattr(locks, sys.argv[1])(Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(300)
"""

Hold = Callable[[str, Path], "subprocess.Popen[str]"]


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Start a process that holds a lock until it is killed."""
    started = []

    def start(kind: str, path: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _HOLD, kind, str(path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("kind", ["folder", "target"])
def test_the_second_is_told_who_is_at_work_and_a_kill_frees_it(tmp_path: Path, hold: Hold, kind: str) -> None:
    path = tmp_path / "runs" / "r"
    process = hold(kind, path)
    lock = getattr(locks, kind)
    for _ in range(2):  # asking changes nothing
        with pytest.raises(UserError) as refused, lock(path):
            pass
        who = rf"process {process.pid} on {re.escape(platform.node())} \(since 20[0-9-]+ [0-9:]+ [+-][0-9]+\)"
        assert re.search(rf"r: {who} is at work there; wait .* another place with --out", str(refused.value))
    process.send_signal(signal.SIGKILL)
    process.wait()
    with lock(path):
        pass
    assert not [each for each in tmp_path.rglob("*") if "lock" in each.name]


def test_a_lock_that_ends_with_an_error_is_free(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ValueError), locks.folder(tmp_path / "r"):
            raise ValueError
    assert not list(tmp_path.iterdir())  # not even an empty folder
    assert not publish.held


def test_who_waits_gets_what_the_winner_made(tmp_path: Path, hold: Hold, capsys: pytest.CaptureFixture[str]) -> None:
    """The lock's file goes while it is held; who has it open already must not take it for the lock."""
    target = tmp_path / "model"
    code = """
import sys
from pathlib import Path
from mixprec.core import artifacts, locks
target = Path(sys.argv[1])
for _ in range(200):
    with locks.once(target, "MIXPREC_CACHE"):
        with (target.parent / "log").open("a") as log:
            log.write("in\\n"); log.flush(); log.write("out\\n")
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, str(target)]) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "in\nout\n" * 600


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def none(*_: object, **__: object) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks, "lock_descriptor", none)
    with locks.folder(tmp_path / "r"):
        artifacts.write_text(tmp_path / "r" / "a", "text")
    assert "its file system has no locks" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["a"]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"r: can't be written \(Not a directory\); .*--out"),
        locks.folder(tmp_path / "file" / "r"),
    ):
        pass
    with (
        pytest.raises(UserError, match=r"model: can't be written .*; choose another place with MIXPREC_CACHE"),
        locks.once(tmp_path / "file" / "model", "MIXPREC_CACHE"),
    ):
        pass


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that makes no folders, as /proc")
def test_where_no_folder_can_be_made() -> None:
    told = "no folder can be made there; choose another place with"
    with pytest.raises(UserError, match=f"^/proc/none: {told} --out$"), locks.folder(Path("/proc/none")):
        pass
    path = Path("/proc/none/models/model")
    with pytest.raises(UserError, match=f"^{path}: {told} MIXPREC_CACHE$"), locks.once(path, "MIXPREC_CACHE"):
        pass
    with pytest.raises(UserError, match=f"^{path}: {told} --out$"):
        artifacts.write_text(path, "text")


def test_a_file_that_is_missing_is_no_folder_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), publish.atomic_path(tmp_path / "new" / "target"):
        (tmp_path / "source").read_text()


def test_processes_of_one_launch_share_a_folder(tmp_path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    hold("folder", tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with locks.folder(tmp_path):
        pass
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="is at work there"), locks.folder(tmp_path):
        pass


def test_unfinished_work_lies_behind_no_link(tmp_path: Path) -> None:
    (tmp_path / ".out.blocks").symlink_to(tmp_path)
    with (
        pytest.raises(UserError, match=r"\.out\.blocks: is a link"),
        locks.target(tmp_path / "out", tmp_path / ".out.blocks"),
    ):
        pass
