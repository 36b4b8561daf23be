"""The processes of one ``accelerate launch`` or ``torchrun``: which one is this, and what they agree on.

Without a launcher there is one process, which is the main one, and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mixprec.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

#: Processes with little to do wait for those with long traces; a dead one is noticed by the launcher, not by time.
_PATIENCE = timedelta(days=30)


def count() -> int:
    """Number of processes that the launcher started."""
    return max(1, _variable("WORLD_SIZE", 1))


def rank() -> int:
    """Number of this process, from 0."""
    return _variable("RANK", 0) if count() > 1 else 0


def is_main() -> bool:
    """Whether this process writes results and speaks to the user."""
    return rank() == 0


def _variable(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default


def one_only() -> bool:
    """Whether several processes were asked for where the launcher starts only one: ``accelerate launch --cpu``."""
    asked = os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_PORT" in os.environ
    return asked and "WORLD_SIZE" not in os.environ


def join(device: str) -> str:
    """Meet the other processes; returns the device that this one computes on.

    ``cuda`` becomes this process's own GPU. Raises UserError for ``auto`` with several processes on one machine.
    """
    if count() == 1:
        return device
    if device == "auto" and _variable("LOCAL_WORLD_SIZE", 1) > 1:
        raise UserError(
            "--device auto: every process would take all GPUs; give each its own with --device cuda, "
            "or start one process for each machine"
        )
    own = _state(device).device
    return str(own) if device == own.type else device


def _state(device: str | None = None) -> Any:
    from accelerate import PartialState

    return PartialState(cpu=device == "cpu", timeout=_PATIENCE)


@contextmanager
def main_first() -> Iterator[None]:
    """Let the main process of all machines go through the block before the others: it fills the run's folder.

    There is one such folder for all machines, so one process of each machine would be too many.
    """
    if count() == 1:
        yield
        return
    with _translated(), _state().main_process_first():
        yield


def wait() -> None:
    """Wait until all processes are here."""
    if count() > 1:
        with _translated():
            _state().wait_for_everyone()


def check_shared(paths: Iterable[Path]) -> None:
    """Raises UserError where what another process has written is not there: it lies on another machine's disk."""
    for path in paths if count() > 1 else ():
        if not path.exists():
            raise UserError(
                f"{path}: another process has written it, but it is not there; all machines need one folder for the "
                "run: give --out on storage that they share"
            )


def agree(value: T) -> T:
    """The main process's value, on all processes."""
    if count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    values = [value]
    with _translated():
        broadcast_object_list(values)
    return values[0]


def add_up(tensors: Sequence[Tensor], number: float) -> float:
    """Sums over all processes: of each of the ``tensors``, in place, and of ``number``, which comes back."""
    if count() == 1:
        return number
    import torch

    last = torch.tensor(number, dtype=torch.float64, device=tensors[0].device if tensors else None)
    sum_up([*tensors, last])
    return float(last)


def sum_up(tensors: Iterable[Tensor]) -> None:
    """Add each of the ``tensors`` up over all processes, in place; afterwards all have the same bytes."""
    if count() == 1:
        return
    from torch import distributed

    _state()  # which has met the others
    with _translated():
        for tensor in tensors:
            distributed.all_reduce(tensor)


def each_gives(value: T) -> list[T]:
    """What each process gives, on all of them, in the order of their numbers; tensors come on the CPU."""
    if count() == 1:
        return [value]
    from torch import distributed

    _state()
    found: list[Any] = [None] * count()
    with _translated():
        distributed.all_gather_object(found, value)
    return found


def share(work: Sequence[int], rank: int, count: int) -> list[int]:
    """Numbers of the traces that process ``rank`` of ``count`` computes, in order.

    ``work``: what each trace takes. The largest goes first, each to the process with the least so far, so that every
    process comes to the same split by itself.
    """
    loads = [0] * count
    mine = []
    for number in sorted(range(len(work)), key=lambda number: (-work[number], number)):
        least = loads.index(min(loads))
        loads[least] += work[number]
        if least == rank:
            mine.append(number)
    return sorted(mine)


def leave() -> None:
    """Part from the others, at the end of the work."""
    if count() > 1:
        _state().destroy_process_group()


@contextmanager
def _translated() -> Iterator[None]:
    """Where another process is gone, its own message says why; the stack of those who waited for it doesn't help."""
    try:
        yield
    except RuntimeError as problem:  # gloo: "Connection closed by peer", "Connection reset by peer"
        if "by peer" not in str(problem):
            raise
        raise UserError("another process has stopped; its message says why") from None
