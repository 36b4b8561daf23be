"""Locks: of processes that would write the same place one works, and the others wait or are told who is at work.

The kernel holds a lock (flock) as long as its process lives, so a kill frees it. The lock's file says who holds it, and
goes when the work ends. Linux passes these locks on to NFS servers, so they hold between machines too; where a file
system has none, that is said, and the user has to see to it.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from filelock import lock_descriptor

from mixprec.core import processes, publish
from mixprec.core.errors import UserError, from_disk
from mixprec.core.progress import console

#: A file system without locks says one of these.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


#: Folders that the code around has taken and shares; threads don't inherit them.
_shared: ContextVar[frozenset[Path]] = ContextVar("mixprec_folders", default=frozenset())


@contextmanager
def folder(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Be alone in a run's folder, which may be a link; of processes that a launcher started the main one is.

    ``shared``: what is called inside may take it too. Raises UserError where another process is at work there, or
    nothing can be written.
    """
    if path.absolute() in _shared.get():
        yield
        return
    new, token = not path.exists(), _shared.set(_shared.get() | ({path.absolute()} if shared else set()))
    try:
        with _held(path / ".lock", path, [path]):
            yield
    finally:
        _shared.reset(token)
        if new:  # a run that ends before its first file leaves no empty folder
            with suppress(OSError):
                path.rmdir()


def at_work(path: Path) -> str | None:
    """Who is at work in a run's folder, None where nobody is, or its file system has no locks."""
    try:
        descriptor = os.open(path / ".lock", os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return None
    try:
        return None if lock_descriptor(descriptor, blocking=False) else _read(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)


@contextmanager
def target(path: Path, *beside: Path) -> Iterator[None]:
    """Be alone with a file, or a folder that is replaced as a whole; ``beside``: what else is written for it.

    Raises UserError as ``folder`` does.
    """
    with _held(_beside(path), path, [path, *beside]):
        for each in beside:
            if each.is_symlink():
                raise UserError(f"{each}: is a link; mixprec keeps unfinished work there. Remove the link")
        yield


@contextmanager
def once(path: Path, place: str) -> Iterator[None]:
    """Wait until no other process makes ``path``, which may be there then, and be alone with it.

    ``place``: what names another place for it.

    Raises UserError where nothing can be written.
    """
    with _held(_beside(path), path, [path], place, wait=True):
        yield


def _beside(path: Path) -> Path:
    return path.with_name(f".{publish.stem_of(path)}.lock")


@contextmanager
def _held(lock: Path, what: Path, paths: list[Path], place: str = "--out", wait: bool = False) -> Iterator[None]:
    """Hold ``lock``, and have the ``paths`` to ourselves; what killed processes left of them goes."""
    fellow = not wait and not processes.is_main()
    descriptor = None if fellow else _acquire(lock, what, place, wait)
    held = [path.absolute() for path in paths]
    publish.held.extend(held)
    try:
        yield
    finally:
        for path in held:
            publish.held.remove(path)
        if descriptor is not None:
            with suppress(OSError):
                lock.unlink()  # while it is held: who waits for it sees that its name is gone
            os.close(descriptor)


def _acquire(lock: Path, what: Path, place: str, wait: bool) -> int | None:
    """The descriptor of the locked file; None where the file system has no locks."""
    told = False
    while True:
        descriptor = _open(lock, what, place)
        try:
            free = lock_descriptor(descriptor, blocking=False)
        except OSError as problem:
            os.close(descriptor)
            if problem.errno not in _NO_LOCKS:
                raise (from_disk(problem, lock, place) or problem) from None
            lock.unlink(missing_ok=True)
            console.print(
                f"{what}: its file system has no locks ({problem.strerror}); see to it that no other mixprec is at "
                "work there",
                soft_wrap=True,
            )
            return None
        if free and _is_there(descriptor, lock):
            _sign(descriptor)
            return descriptor
        holder = "another process" if free else _read(descriptor)
        os.close(descriptor)
        if not free and not wait:
            raise UserError(
                f"{what}: {holder} is at work there; wait until it is done, or choose another place with {place}"
            )
        if not free:
            if not told:
                console.print(f"{what}: waiting for {holder}, which makes it", soft_wrap=True)
            told = True
            time.sleep(0.2)


def _open(lock: Path, what: Path, place: str) -> int:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        return os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as problem:
        raise (from_disk(problem, what, place) or problem) from None


def _is_there(descriptor: int, lock: Path) -> bool:
    """Whether the locked file still has its name: whoever held it before has removed it."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    return False


def _sign(descriptor: int) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    text = json.dumps({"process": os.getpid(), "host": platform.node(), "since": since}) + "\n"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _read(descriptor: int) -> str:
    """Who holds a lock, as its file says; it may be that they haven't signed yet."""
    try:
        who = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {who['process']} on {who['host']} (since {who['since']})"
    except (ValueError, KeyError, TypeError):
        return "another process"
