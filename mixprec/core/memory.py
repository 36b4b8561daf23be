"""Memory that was freed and is held all the same, memory that ran out, and a limit that a process keeps."""

from __future__ import annotations

import ctypes
import functools
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

#: Seconds between two looks at how much memory the process has.
_PAUSE = 0.05
#: What torch says where memory ran out: of a GPU, of the CPU on Linux, on Windows.
_SAID = ("out of memory", "can't allocate memory", "not enough memory")
#: "you tried to allocate 4000000 bytes", "Tried to allocate 2.00 GiB", numpy's "Unable to allocate 7.28 TiB".
_AMOUNT = re.compile(r"\b(?:tried|Tried|Unable) to allocate ([0-9.]+ (?:bytes|[kKMGT]i?B))")


class OverLimit(MemoryError):
    """The process has more memory than ``limited`` allows."""


def release_memory() -> None:
    """Give freed memory back: batches differ a little in size, and glibc would keep holes between their tensors."""
    if (trim := _malloc_trim()) is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # another C library
        return None
    return found


def ran_out(problem: BaseException) -> str | None:
    """In words how memory ran out, with what was asked for where that is known; None for all other problems."""
    text = str(problem)
    if isinstance(problem, OverLimit):
        return text
    if not isinstance(problem, MemoryError) and not (
        isinstance(problem, RuntimeError) and any(each in text for each in _SAID)
    ):
        return None
    amount = _AMOUNT.search(text)
    return "out of memory" + (f" ({amount[1]} more were asked for)" if amount else "")


@contextmanager
def limited(limit: int | None) -> Iterator[None]:
    """Raise OverLimit inside when the process has more than ``limit`` bytes resident; None is no limit.

    What is computed outside Python ends first: for so long the process may have more.
    """
    if limit is None:
        yield
        return
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(limit, threading.get_ident(), ended), daemon=True)
    watch.start()
    try:
        yield
    except OverLimit:  # raised from another thread, which can hand over no message
        raise OverLimit(f"the process has more than the {limit / 1e9:g} GB of --max-memory") from None
    finally:
        ended.set()
        watch.join()


def _watch(limit: int, thread: int, ended: threading.Event) -> None:
    process = psutil.Process()
    while not ended.wait(_PAUSE):
        if process.memory_info().rss > limit:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(OverLimit))
            return
