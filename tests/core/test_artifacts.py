"""Artifacts: nothing half-written, nothing lost between writing and reading, errors that name the file."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import resource
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixprec.core import artifacts, locks, publish
from mixprec.core.errors import UserError, from_disk

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt])
def test_a_file_keeps_its_old_content_when_writing_fails(tmp_path: Path, problem: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    artifacts.write_text(path, "old")
    with pytest.raises(problem), publish.atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise problem
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for name in ("first", "second"):
        with publish.atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
            assert name not in (names(target) if target.exists() else [])
    assert names(target) == ["second"]
    with pytest.raises(ValueError), publish.atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "third").write_text("third")
        raise ValueError
    assert names(target) == ["second"]
    assert names(tmp_path) == ["folder"]


def leave(path: Path, *, folder: bool) -> None:
    """A process that writes ``path`` and is killed in the middle."""
    code = f"""
import os, sys
from pathlib import Path
from mixprec.core import artifacts, publish
path = Path({str(path)!r})
with publish.atomic_path(path) as temporary:
    temporary.mkdir() if {folder} else None
    (temporary / "stale" if {folder} else temporary).write_text("stale")
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9


@pytest.mark.parametrize("folder", [True, False])
def test_what_a_killed_process_left_does_not_mix_in_and_goes(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / ("n" * 250)  # together with what makes it unique too long for a file system
    leave(path, folder=folder)
    neighbour = tmp_path / f".{'n' * 180}.0123abcd-1-0123456789abcdef.partial"  # of another target
    neighbour.touch()
    assert len(names(tmp_path)) == 2
    with publish.atomic_path(path) as temporary:
        temporary.mkdir() if folder else temporary.write_text("new")
    assert names(tmp_path) == [neighbour.name, path.name]
    assert names(path) == [] if folder else path.read_text() == "new"


def test_what_other_machines_left_goes_where_nobody_else_is_at_work(tmp_path: Path) -> None:
    """Without a lock it may be at work: its process number means nothing here."""
    other = tmp_path / f".a.{'0' * 8}-1-{'0' * 16}.partial"
    old = tmp_path / ".a.partial"  # the name that mixprec 0.1 gave
    for left in (other, old):
        left.touch()
    artifacts.write_text(tmp_path / "a", "first")
    assert names(tmp_path) == [other.name, old.name, "a"]
    with locks.folder(tmp_path):
        artifacts.write_text(tmp_path / "a", "second")
    assert names(tmp_path) == ["a"]


def test_two_that_write_one_path_both_end_and_one_of_them_wins(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with publish.atomic_path(path) as one, publish.atomic_path(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert names(tmp_path) == ["a"]
    assert path.read_text() == "one"  # which ends last


@pytest.mark.parametrize("first", [True, False])
def test_of_two_that_make_one_folder_a_cache_keeps_the_winners(tmp_path: Path, first: bool) -> None:
    path = tmp_path / "a"
    with publish.atomic_path(path, first=first) as late:
        late.mkdir()
        (late / "late").touch()
        with publish.atomic_path(path, first=first) as early:
            early.mkdir()
            (early / "early").touch()
    assert names(path) == (["early"] if first else ["late"])
    assert names(tmp_path) == ["a"]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename = tmp_path / "a", Path.rename
    path.mkdir()
    (path / "old").touch()

    def fail(self: Path, target: Path) -> Path:
        if target == path and "new" in names(self):
            raise OSError(errno.EIO, "broken", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(UserError, match=r"a: the disk fails"), publish.atomic_path(path) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert names(path) == ["old"]
    assert names(tmp_path) == ["a"]


def test_removing_goes_through_no_link(tmp_path: Path) -> None:
    precious, run = tmp_path / "precious", tmp_path / "run"
    precious.mkdir()
    (precious / "file").touch()
    run.mkdir()
    (run / "inside").mkdir()
    (run / "inside" / "link").symlink_to(precious)
    (run / "link").symlink_to(precious)
    with locks.folder(run):
        for path in (run / "link", run / "link" / "file"):
            for act in (
                publish.remove,
                lambda p: artifacts.write_text(p, "x"),
                lambda p: artifacts.append_line(p, "x"),
            ):
                with pytest.raises(UserError, match=r"run/link: is a link to .*precious; nothing behind a link"):
                    act(path)
        publish.remove(run / "inside")
    assert names(precious) == ["file"]
    assert names(run) == ["link"]
    publish.remove(run / "link")  # elsewhere a link is a file like others
    assert names(precious) == ["file"]


def test_a_held_folder_may_be_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    with locks.folder(tmp_path / "run"):
        artifacts.write_text(tmp_path / "run" / "a" / "b", "text")
        publish.remove(tmp_path / "run" / "a")
    assert (tmp_path / "run").is_symlink()
    assert names(tmp_path / "disk") == []


def test_a_folder_with_a_mount_in_it_stays(tmp_path: Path) -> None:
    """What is mounted in a folder belongs to another disk."""
    inside = ["unshare", "--mount", "--map-root-user", "sh", "-ec"]
    mount = 'mount --bind "$0"/precious "$0"/run/deep/mount; '
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / "run" / "deep" / "mount").mkdir(parents=True)
    if shutil.which("unshare") is None or subprocess.run([*inside, mount, tmp_path], check=False).returncode:
        pytest.skip("needs unshare and the right to mount")
    code = "import sys; from pathlib import Path; from mixprec.core import publish; publish.remove(Path(sys.argv[1]))"
    command = [*inside, mount + 'exec "$@"', tmp_path, sys.executable, "-c", code, tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "is mounted there, and would lose its files; unmount it first" in done.stderr
    assert names(tmp_path / "precious") == ["file"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("n" * 300, "the name is too long for the file system; give a shorter one"),
        ("circle/a", "can't be written"),
        ("big", r"larger than its file system or the limit on file sizes \(ulimit -f\) allows"),
        ("tensors", r"larger than its file system or the limit on file sizes \(ulimit -f\) allows"),
        ("lines", r"larger than its file system or the limit on file sizes \(ulimit -f\) allows"),
    ],
)
def test_what_a_file_system_refuses(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    act = {
        "tensors": lambda: artifacts.save_tensors(tmp_path / path, {"a": torch.ones(100_000)}),
        "lines": lambda: artifacts.append_line(tmp_path / path, "x" * 200_000),
    }.get(path, lambda: artifacts.write_text(tmp_path / path, "x" * 200_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=f"{path}: {message}"):
            act()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["circle"] or path == "lines"


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    for path, reason in (
        (tmp_path / "file" / "below.txt", "can't be written"),
        (tmp_path / "folder", "can't be written"),
        (tmp_path / "pipe", "no regular file"),
    ):
        with pytest.raises(UserError, match=f"{path.name}: .*{reason}.*--out"):
            artifacts.write_text(path, "new")
    assert names(tmp_path) == ["file", "folder", "pipe"]
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "folder" / "kept").read_text() == "mine"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("path", [".", "/"])
def test_a_path_without_a_name_takes_no_file(path: str) -> None:
    with pytest.raises(UserError, match="is a folder and has no name of its own here"):
        artifacts.write_text(Path(path), "text")


def test_what_is_copied_from_a_read_only_file_is_flushed_too(tmp_path: Path) -> None:
    with publish.atomic_path(tmp_path / "a") as folder:
        folder.mkdir()
        (folder / "b").write_text("text")
        (folder / "b").chmod(0o444)
    assert names(tmp_path / "a") == ["b"]


@given(st.data())
def test_rows_behind_a_kill_leave_the_bytes_of_a_file_that_was_not_hit(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder, rows = tmp_path_factory.mktemp("rows"), [{"stamp": "a", "number": number} for number in range(3)]
    for row in rows:
        artifacts.append_row(folder / "whole.jsonl", row)
    whole = (folder / "whole.jsonl").read_bytes()
    hit = folder / "hit.jsonl"
    hit.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    for row in rows[len(list(artifacts.rows_left(hit, "a"))) :]:
        artifacts.append_row(hit, row)
    # A row that lacks its end of line alone is known, and nothing is appended behind the last one.
    assert hit.read_bytes().rstrip(b"\n") == whole.rstrip(b"\n")


def test_appending_to_a_full_disk() -> None:
    full = Path("/dev/full")
    if not full.is_char_device():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(UserError, match="the disk is full"):
        artifacts.append_line(full, "x")


def test_numpy_says_in_its_own_words_that_a_disk_is_full(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.is_char_device():
        pytest.skip("this system has no /dev/full")
    with (
        pytest.raises(UserError, match="weights: the disk is full"),
        publish.atomic_path(tmp_path / "weights"),
        full.open("wb") as file,
    ):
        np.zeros(1_000_000).tofile(file)


def test_torch_says_in_its_own_words_that_a_disk_is_full(tmp_path: Path) -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(RuntimeError) as told:
        torch.save({"x": torch.zeros(100_000)}, "/dev/full")
    assert "states: the disk is full" in str(from_disk(told.value, tmp_path / "states"))
    assert from_disk(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), tmp_path) is None


def test_what_safetensors_leaves_when_it_is_killed_goes(tmp_path: Path) -> None:
    path, left = tmp_path / "a.safetensors", []

    def killed(*_: object, **__: object) -> None:
        folder = next(each for each in tmp_path.iterdir() if each.is_dir())
        (folder / ".tmpX1y2z3").write_bytes(b"half")
        # As a process that is gone has left it.
        left.append(folder.rename(folder.with_name(folder.name.replace(f"-{os.getpid()}-", "-4194305-"))))
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("safetensors.torch.save_file", killed)
        artifacts.save_tensors(path, {"x": torch.ones(2)})
    assert [each.exists() for each in left] == [True]
    artifacts.save_tensors(path, {"x": torch.ones(2)})
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


@same_folder
@given(st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=4))
def test_json_lines_come_back(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "rows.jsonl"
    artifacts.write_jsonl(path, rows)
    assert artifacts.read_jsonl(path) == rows
    assert path.read_bytes().count(b"\n") == len(rows)


def test_json_lines_with_what_python_takes_for_ends_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    text = "a\u2028b\u2029c\x0cd\x85e\r\nf\x1e"
    artifacts.append_line(path, '{"text": "a\u2028b\x85"}')
    artifacts.append_line(path, "")
    artifacts.write_jsonl(tmp_path / "written.jsonl", [{"text": text}])
    assert artifacts.read_jsonl(path) == [{"text": "a\u2028b\x85"}]
    assert artifacts.read_jsonl(tmp_path / "written.jsonl") == [{"text": text}]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_have_are_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.write_json(tmp_path / "a.json", {"value": value})
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.write_jsonl(tmp_path / "a.jsonl", [{"value": value}])
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n"b": }', r"a\.json:2: not valid JSON"),
        (b'{"x": {"a": 1, "b": 2, "a": 3}}', r"a\.json: the key 'a' is there twice"),
        (b'{"a": "\xff"}', r"a\.json: not UTF-8 text \(byte 7"),
        (b"", r"a\.json:1: not valid JSON"),
    ],
)
def test_broken_json(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        artifacts.read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"a": 1}\n\n{"b": ', r"a\.jsonl:3: not valid JSON"), ('{"a": 1}\n[2]\n', r"a\.jsonl:2: expected .* found list")],
)
def test_broken_json_lines(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        artifacts.read_jsonl(tmp_path / "a.jsonl")


def test_missing_files(tmp_path: Path) -> None:
    for read in (artifacts.read_json, artifacts.read_jsonl, artifacts.read_text, artifacts.load_tensors):
        with pytest.raises(UserError, match=r"gone: .*[Nn]o such file"):
            read(tmp_path / "gone")


def test_tensors_come_back_with_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {
        "ü": torch.arange(6.0).reshape(2, 3).T,
        "half": torch.ones(2, dtype=torch.bfloat16),
        "none": torch.ones(0),
    }
    before = os.umask(0o027)
    try:
        artifacts.save_tensors(path, tensors, {"stamp": "ü", "nested": {"n": [1, None]}})
    finally:
        os.umask(before)
    found, metadata = artifacts.load_tensors(path)
    assert metadata == {"stamp": "ü", "nested": {"n": [1, None]}}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert all(found[name].dtype == tensors[name].dtype for name in tensors)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_equal_tensors_are_equal_bytes(tmp_path: Path) -> None:
    """safetensors writes metadata in another order every time."""
    metadata = {name: '\u2028\x7f\x00\\ü"' + name for name in "abcdefgh"}
    made = []
    for order in (1, -1):
        for _ in range(4):
            path = tmp_path / "a.safetensors"
            artifacts.save_tensors(
                path, {"x": torch.ones(3), "ü\n": torch.zeros(2)}, dict([*metadata.items()][::order])
            )
            made.append(path.read_bytes())
    assert len(set(made)) == 1
    found, stored = artifacts.load_tensors(path)
    assert stored == metadata
    assert found["x"].tolist() == [1, 1, 1]
    assert found["ü\n"].tolist() == [0, 0]


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_truncated_tensors(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.safetensors"
    artifacts.save_tensors(path, {"a": torch.ones(4)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"a\.safetensors: broken safetensors file"):
        artifacts.load_tensors(path)


def test_fingerprints_depend_on_values_alone() -> None:
    assert artifacts.fingerprint({"a": 1, "b": [2]}) == artifacts.fingerprint({"b": [2], "a": 1})
    different = [[1], ["1"], [[1]], [1, 2], [2, 1], [12], [None], [{"a": 1}], [{"a": 1.5}], []]
    assert len({artifacts.fingerprint(*parts) for parts in different}) == len(different)
    # Fixed for ever: a change of this value repeats every stage of every run there is.
    assert artifacts.fingerprint("ü", {"a": None}).startswith("bcdda1fefe40")


def test_a_file_is_hashed_once_and_again_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    whole = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: (reads.append(file.name), whole(file, name))[1])
    path = tmp_path / "a"
    path.write_bytes(b"one")
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    assert artifacts.sha256_file(path) == artifacts.sha256_file(path) == hashlib.sha256(b"one").hexdigest()
    assert len(reads) == 1
    path.write_bytes(b"two")
    os.utime(path, ns=times)  # as a copy that keeps times has it
    assert artifacts.sha256_file(path) == hashlib.sha256(b"two").hexdigest()
    other = tmp_path / "b"
    other.write_bytes(b"six")
    other.replace(path)
    assert artifacts.sha256_file(path) == hashlib.sha256(b"six").hexdigest()
    assert len(reads) == 3
    with pytest.raises(UserError, match=r"gone: can't be read \(No such file"):
        artifacts.sha256_file(tmp_path / "gone")


def test_provenance_says_what_and_not_when() -> None:
    made = artifacts.provenance(model="m")
    assert made["model"] == "m"
    assert (
        made["packages"]["torch"] == torch.__version__.split("+")[0] or made["packages"]["torch"] == torch.__version__
    )
    assert made == artifacts.provenance(model="m")
    assert set(made) == {"schema_version", "mixprec", "git_revision", "packages", "model"}


def test_equal_tensors_are_equal_bytes_whatever_order_their_metadata_come_in(tmp_path: Path) -> None:
    odd = {f"key {i}": f'ä "{i}" \\ \n\t\b\x01\x7f 🙂' for i in range(6)}
    tensors = {"ä": torch.arange(3), "b": torch.ones(2)}
    artifacts.save_tensors(tmp_path / "a", tensors, odd)
    artifacts.save_tensors(tmp_path / "b", tensors, dict(reversed(odd.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded, metadata = artifacts.load_tensors(tmp_path / "a")
    assert metadata == odd
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
