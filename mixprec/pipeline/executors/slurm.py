"""Jobs under Slurm, by submitit: each in a process of its own, that Slurm starts where there is room.

What submitit keeps of a job, its log too, lies in ``.jobs`` of the run's folder until the run is done.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from mixprec.core import publish
from mixprec.core.errors import UserError, reason
from mixprec.pipeline.executors import worker
from mixprec.pipeline.executors.base import Done
from mixprec.pipeline.executors.placement import Placement
from mixprec.pipeline.executors.worker import Order
from mixprec.pipeline.jobs import Job, gpus_of
from mixprec.recipe import Recipe

#: Folder of a run with what submitit keeps.
FOLDER: Final = ".jobs"
#: Jobs at once, where nobody says.
_JOBS: Final = 16
#: Minutes that Slurm gives a job, where nobody says; one that needs more is put into the queue again and goes on.
_MINUTES: Final = 240
#: How often that happens at most.
_TIMEOUTS: Final = 20
#: Parameters of submitit that aren't Slurm's alone -> their type.
_NUMBERS: Final[Mapping[str, type[int | float]]] = {"timeout_min": int, "mem_gb": float}
#: Seconds between two looks at the jobs.
_PAUSE: Final = 0.5


class Asked:
    """What submitit calls in the job's process, and what it puts back into the queue when Slurm takes the machine."""

    def __call__(self, order: Order, job: Job) -> Done:
        return worker.do(order, job)

    def checkpoint(self, order: Order, job: Job) -> Any:
        """Called by submitit before the job's time ends: what is finished is kept, so the same call goes on."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, order, job)


class OnSlurm:
    """Submits jobs with the parameters that ``placement`` has. The parameter ``cluster`` of ``local`` makes them
    processes of this machine, to try things out."""

    tells = False

    def __init__(self, order: Order, chosen: Recipe, placement: Placement) -> None:
        import submitit

        parameters = dict(placement.slurm)
        cluster = parameters.pop("cluster", "slurm")
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise UserError("--on slurm: there is no sbatch here; start the run on a machine that submits Slurm's jobs")
        if cluster not in ("slurm", "local"):
            raise UserError(f"--slurm cluster={cluster}: not known; leave it out, or take local, to try things out")
        self._order, self._chosen, self._placement = order, chosen, placement
        self._folder = Path(order.out) / FOLDER
        self._executor = submitit.AutoExecutor(self._folder, cluster=cluster, slurm_max_num_timeout=_TIMEOUTS)
        self._failed = submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError
        self._refused = submitit.core.utils.FailedSubmissionError
        self._update({"timeout_min": _MINUTES, "cpus_per_task": placement.cpus} | _parsed(parameters))
        self._left: list[tuple[Any, Job]] = []
        self._wrong = False
        self.slots = placement.jobs or _JOBS

    def submit(self, job: Job) -> None:
        gpus = gpus_of(self._chosen, job, self._placement.gpus)
        self._update({"name": f"mixprec-{job.name.replace('/', '-')}", "gpus_per_node": gpus or None})
        with _environment(worker.variables(self._placement.cpus)):
            try:
                self._left.append((self._executor.submit(Asked(), self._order, job), job))
            except self._refused as problem:
                raise UserError(f"--on slurm: sbatch refuses the job {job.name}: {reason(problem)}") from None

    def wait(self) -> list[Done]:
        while not (ended := [each for each in self._left if each[0].done()]):
            time.sleep(_PAUSE)
        self._left = [each for each in self._left if each not in ended]
        return [self._ended(handle, job) for handle, job in ended]

    def close(self) -> None:
        for handle, _ in self._left:
            handle.cancel(check=False)
        if not self._left and not self._wrong:
            publish.remove(self._folder)
        self._left.clear()

    def _ended(self, handle: Any, job: Job) -> Done:
        try:
            found: Done = handle.result()
        except self._failed:
            log = handle.paths.stderr
            return Done(job.name, died=f"Slurm says {handle.state.lower()}; its log is {log}")
        self._wrong |= bool(found.problem or found.crash)
        return found

    def _update(self, parameters: Mapping[str, Any]) -> None:
        try:
            self._executor.update_parameters(**parameters)
        except (NameError, ValueError, AssertionError) as problem:
            raise UserError(f"--slurm: {reason(problem)}") from None


def _parsed(given: Mapping[str, str]) -> dict[str, Any]:
    """Submitit's parameters, with the values that it wants. Raises UserError for what is no number."""
    found: dict[str, Any] = {}
    for name, text in given.items():
        if name not in _NUMBERS:
            value: Any = text
            with suppress(ValueError):
                value = int(text)
            found[f"slurm_{name}"] = value
            continue
        try:
            found[name] = _NUMBERS[name](text)
        except ValueError:
            raise UserError(f"--slurm {name}={text}: is no number") from None
        if not 0 < found[name] < math.inf:  # Slurm would end each job at once
            raise UserError(f"--slurm {name}={text}: has to be above 0, and finite")
    return found


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """The environment that a job inherits inside."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
