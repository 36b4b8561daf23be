"""Writing to a temporary name and renaming: a path has its old content or its new one, never half of it.

Temporary names say who writes them, so that what a killed process left can be told and removed.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from mixprec.core.errors import UserError, from_disk

#: Paths that no process writes but this one and those that a launcher started beside it; locks.py fills it.
held: list[Path] = []

#: A temporary name: the target's, who writes it (place and process), and what makes it unique.
_TEMPORARY = re.compile(r"\.(?P<stem>.+)\.(?P<place>[0-9a-f]{8})-(?P<process>[0-9]+)-[0-9a-f]{16}\.partial", re.DOTALL)
#: Bytes of a target's name in another name; file systems allow 255 for the whole.
_STEM = 180


def stem_of(path: Path) -> str:
    """The name of ``path`` as a part of other names: a long one is cut and told apart by its digest.

    Raises UserError for a path without a name: this folder, or the root.
    """
    if not path.name:
        raise UserError(f"{path}: is a folder and has no name of its own here; give a name with --out")
    name = os.fsencode(path.name)
    if len(name) <= _STEM:
        return path.name
    return f"{name[:40].decode(errors='ignore')}~{hashlib.sha256(name).hexdigest()[:16]}"


@functools.cache
def _place() -> str:
    """Where process numbers mean what they mean here: this machine since it started, this container."""
    parts = [platform.node()]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), str(Path("/proc/self/ns/pid").readlink())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]


def _temporary(path: Path) -> Path:
    """A name beside ``path`` that nobody else takes or can guess."""
    return path.with_name(f".{stem_of(path)}.{_place()}-{os.getpid()}-{secrets.token_hex(8)}.partial")


def leftovers(path: Path) -> list[Path]:
    """What killed processes left of their attempts to write ``path``, and what can be removed therefore.

    Where ``path`` is held, all that isn't ours; else what a process of this machine left that is gone.
    """
    alone = _holder(path) is not None
    found = [path.with_name(f".{path.name}.partial")] if alone else []  # of mixprec before 0.2
    for entry in path.parent.iterdir() if path.parent.is_dir() else ():
        parts = _TEMPORARY.fullmatch(entry.name)
        if parts is None or parts["stem"] != stem_of(path):
            continue
        here, process = parts["place"] == _place(), int(parts["process"])
        if (alone or (here and not psutil.pid_exists(process))) and not (here and process == os.getpid()):
            found.append(entry)
    return [entry for entry in found if os.path.lexists(entry)]


def _holder(path: Path) -> Path | None:
    """The held path that ``path`` is or lies in."""
    there = path.absolute()
    return next((root for root in held if root == there or root in there.parents), None)


def refuse_links(path: Path) -> None:
    """Raises UserError where a held folder leads to ``path`` through a link: what lies behind it isn't ours."""
    root, there = _holder(path), path.absolute()
    for part in () if root is None else (there, *there.parents):
        if part == root:
            return
        if part.is_symlink():
            raise UserError(
                f"{part}: is a link to {part.readlink()}; nothing behind a link in a run's folder is written or "
                "removed. Remove the link; to keep a run elsewhere, put its whole folder there and give it with --out"
            )


@contextmanager
def atomic_path(path: Path, first: bool = False, place: str = "--out") -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` for a file or a folder; when it is on the disk, it takes the name.

    On an error it goes. Its name is unique, so that processes that write the same path don't meet. ``first``: a folder
    that another process has put there meanwhile stays, and this one goes. ``place``: what names another place for it.
    Raises UserError where the disk is full or the target can't be written, is no file (a device, a pipe) or is a link
    in a held folder.
    """
    temporary = _temporary(path)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            # The rename would put a file in the place of /dev/null.
            raise UserError(f"{path}: is no regular file; choose another place with --out")
        refuse_links(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in leftovers(path):
            remove(left)
        yield temporary
        _flush(temporary)
        if temporary.is_dir():
            _publish_folder(temporary, path, first)
        else:
            temporary.replace(path)
    except BaseException as problem:
        # What can't be removed was never made, or is in the same trouble: the first problem is the one to tell.
        with suppress(OSError):
            remove(temporary)
        error = from_disk(problem, path, place)
        if error is not None:
            raise error from None
        raise
    _sync_folder(path.parent)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` for what this process needs for a while: not there yet, and gone at the end.

    What killed processes left of theirs goes first.
    """
    for left in leftovers(path):
        remove(left)
    folder = _temporary(path)
    try:
        yield folder
    finally:
        remove(folder)


def _publish_folder(temporary: Path, path: Path, first: bool) -> None:
    """Rename a folder to ``path``. What is there goes aside at once, so that no half of it is ever seen there."""
    aside = _temporary(path)
    if os.path.lexists(path) and not first:
        path.rename(aside)
    try:
        temporary.rename(path)
    except BaseException as problem:
        if os.path.lexists(aside):
            aside.rename(path)
        if not (first and isinstance(problem, OSError) and problem.errno in (errno.EEXIST, errno.ENOTEMPTY)):
            raise
        remove(temporary)
    remove(aside)


def _flush(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk."""
    if path.is_dir():
        for entry in path.iterdir():
            _flush(entry)
        _sync_folder(path)
    else:
        # Some systems sync only what is open for writing; a copy of a read-only file can't be.
        with path.open("rb+" if os.access(path, os.W_OK) else "rb") as file:
            os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some network file systems can't sync folders; the rename is still atomic
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or folder, if there is one; of a link only the link.

    Raises UserError where another file system is mounted in the folder, or a held folder leads there through a link.
    """
    refuse_links(path)
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    there = path.resolve()
    for mounted in (Path(each.mountpoint) for each in psutil.disk_partitions(all=True)):
        if mounted == there or there in mounted.parents:
            raise UserError(f"{path}: {mounted} is mounted there, and would lose its files; unmount it first")
    shutil.rmtree(path)


def within(folder: Path, name: str) -> Path:
    """The path of a ``name`` that a record in ``folder`` has.

    Raises UserError where it leads out of the folder.
    """
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
        raise UserError(f"{folder}: the name {name!r} in its record leads out of the folder; nothing there is read")
    return folder / name


def share(path: Path) -> None:
    """Give a file the permissions that ``open`` would: safetensors lets nobody but the owner read its files."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def write_json(path: Path, data: Any) -> None:
    """Write a file of a folder that is not there yet under its name."""
    # Not artifacts.write_json: the folder as a whole is what appears at once, and what errors should name.
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
