"""Stages: done once, done again where inputs or outputs changed, never taken for done after a failure."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from mixprec.core import version
from mixprec.core.stages import Stages


def flip(path: Path) -> None:
    """Change one bit, and neither size nor times."""
    times, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


class Counted:
    """A stage that writes a file and a folder, and counts how often it ran."""

    def __init__(self, run: Path) -> None:
        self.file, self.folder = run / "out.txt", run / "folder"
        self.stages, self.count = Stages(run), 0

    def make(self) -> None:
        self.count += 1
        self.file.write_text("content")
        self.folder.mkdir(exist_ok=True)
        for name in ("a", "b"):
            (self.folder / name).write_text(name)

    def do(self, inputs: Any = 1, name: str = "x/y", rules: int = 1) -> str:
        return self.stages.do(name, rules, inputs, [self.file, self.folder], self.make)


@pytest.fixture
def counted(tmp_path: Path) -> Counted:
    return Counted(tmp_path)


def test_equal_inputs_are_done_once(counted: Counted, tmp_path: Path) -> None:
    stamp = counted.do({"a": 1, "b": 2})
    assert counted.do({"b": 2, "a": 1}) == stamp
    counted.stages = Stages(tmp_path)  # another process
    assert counted.do({"a": 1, "b": 2}) == stamp
    assert counted.count == 1


def test_other_inputs_are_done_again_and_have_another_stamp(counted: Counted) -> None:
    assert counted.do(1) != counted.do(2)
    counted.do(1)
    assert counted.count == 3


def test_other_rules_do_a_stage_again_and_another_version_does_not(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted.do()
    monkeypatch.setattr(version, "VERSION", "99")
    counted.do()
    assert counted.count == 1
    counted.do(rules=2)
    assert counted.count == 2


@pytest.mark.parametrize(
    "harm",
    [
        "remove file",
        "remove folder",
        "cut file",
        "file of folder",
        "marker",
        "bit",
        "bit of folder",
        "bit of marker",
        "added",
    ],
)
def test_harmed_outputs_are_made_again(counted: Counted, tmp_path: Path, harm: str) -> None:
    counted.do()
    match harm:
        case "remove file":
            counted.file.unlink()
        case "remove folder":
            shutil.rmtree(counted.folder)
        case "cut file":
            counted.file.write_text("con")
        case "file of folder":
            (counted.folder / "a").unlink()
        case "marker":
            shutil.rmtree(tmp_path / ".stages")
        case "bit":
            flip(counted.file)
        case "bit of folder":
            flip(counted.folder / "b")
        case "bit of marker":
            flip(tmp_path / ".stages" / "x-y.json")
        case "added":
            (counted.folder / "c").touch()
    counted.do()
    counted.do()
    assert counted.count == 2


def test_what_was_changed_is_named(counted: Counted, capsys: pytest.CaptureFixture[str]) -> None:
    counted.do()
    counted.do()
    assert not capsys.readouterr().err
    flip(counted.folder / "a")
    counted.do()
    assert (
        "folder/a: is not what was written (edited, damaged, added or removed); made again" in capsys.readouterr().err
    )
    (counted.folder / "README.md").touch()  # a model card, to which results are added
    counted.do()
    assert counted.count == 2


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt])
def test_a_stage_that_fails_is_not_done(
    counted: Counted, monkeypatch: pytest.MonkeyPatch, problem: type[BaseException]
) -> None:
    counted.do(1)
    make = counted.make

    def fail() -> None:
        make()
        raise problem

    monkeypatch.setattr(counted, "make", fail)
    with pytest.raises(problem):
        counted.do(2)
    monkeypatch.setattr(counted, "make", make)
    counted.do(1)  # the files that the failed one wrote are not those of 1
    assert counted.count == 3


def test_markers_of_a_moved_run_still_hold(tmp_path: Path) -> None:
    Counted(tmp_path / "a").stages.run.mkdir()
    Counted(tmp_path / "a").do()
    shutil.move(tmp_path / "a", tmp_path / "b")
    moved = Counted(tmp_path / "b")
    moved.do()
    assert moved.count == 0
