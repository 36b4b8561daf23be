"""What an executor of jobs is, and the one that needs nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from mixprec.pipeline.jobs import Job


class Done(NamedTuple):
    """How a job ended. ``problem``: what is the user's to mend, ``crash``: the trace of a mistake of ours; both empty
    where it was done. ``died``: why whoever did it is gone; the job isn't done then, and goes on where it is started
    again. ``notices``: what it had to say; ``where``: the machine; ``seconds``: that it took."""

    name: str
    problem: str = ""
    crash: str = ""
    died: str = ""
    notices: Sequence[str] = ()
    where: str = ""
    seconds: float = 0.0


class Executor(Protocol):
    """Does jobs. ``slots``: how many it takes at once. ``tells``: whether the jobs themselves write the run's log, and
    raise what goes wrong."""

    slots: int
    tells: bool

    def submit(self, job: Job) -> None:
        """Take a job whose predecessors are done."""

    def wait(self) -> list[Done]:
        """Wait until a job has ended at least; only called while there are some."""
        ...

    def close(self) -> None:
        """Give up jobs that haven't ended."""


class Here:
    """One job after another in this process; what goes wrong is raised at once."""

    slots = 1
    tells = True

    def __init__(self, do: Callable[[Job], None]) -> None:
        self._do = do
        self._job: Job

    def submit(self, job: Job) -> None:
        self._job = job

    def wait(self) -> list[Done]:
        self._do(self._job)
        return [Done(self._job.name)]

    def close(self) -> None:
        pass
