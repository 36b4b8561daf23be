"""A job in a process of its own, wherever an executor starts it: it sees the run's folder and gets the recipe."""

from __future__ import annotations

import logging
import os
import platform
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from mixprec.core import environment, locks
from mixprec.core.errors import UserError, from_disk
from mixprec.pipeline.executors.base import Done
from mixprec.pipeline.jobs import Job

#: Variables that say where things lie; a process elsewhere gets those that are set here, and no others.
PLACES = ("MIXPREC_DATA", "MIXPREC_CACHE", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE")


class Order(NamedTuple):
    """What a process has to know of a run: ``text`` of the recipe, ``name``, folders ``out`` and ``data``, and the
    folder ``here`` that relative paths in the recipe begin at."""

    text: str
    name: str
    out: str
    data: str | None
    here: str


def variables(cpus: int) -> dict[str, str]:
    """What the environment of a process that does jobs has to say: as many threads as it has cores."""
    found = {name: os.environ[name] for name in PLACES if name in os.environ}
    return {**found, **environment.VARIABLES, "OMP_NUM_THREADS": str(cpus), "MKL_NUM_THREADS": str(cpus)}


def do(order: Order, job: Job) -> Done:
    """Do a job. How it ended comes back; nothing is raised but what stops the process."""
    environment.settle()  # before torch is imported
    start, notices = time.monotonic(), list[str]()
    problem = crash = ""
    try:
        _do(order, job, notices)
    except Exception as caught:
        mend = caught if isinstance(caught, UserError) else from_disk(caught)
        problem, crash = (str(mend), "") if mend is not None else ("", traceback.format_exc())
    seconds = time.monotonic() - start
    return Done(job.name, problem, crash, "", tuple(notices), platform.node(), seconds)


def _do(order: Order, job: Job, notices: list[str]) -> None:
    # With torch, which whoever only hands out jobs doesn't need.
    from mixprec.pipeline.work import Work
    from mixprec.pipeline.written import recipe_in

    for folder, what in ((order.here, "the folder that the run was started in"), (order.out, "the run's folder")):
        if not Path(folder).is_dir():
            raise UserError(
                f"{folder}: {what} is not on {platform.node()}; all machines need it: put it on storage that they share"
            )
    os.chdir(order.here)
    out, data = Path(order.out), None if order.data is None else Path(order.data)
    chosen = recipe_in(order.text, out / "recipe.yaml")
    # A process that its executor has given up may still be at work: then this one waits, and finds what it made.
    with locks.once(out / ".stages" / f"{job.name.replace('/', '-')}.job", "--out"):
        work = Work(chosen, order.text, order.name, out, data)
        work.look(job)
        with _noting(notices):
            work.do(job)


class _Notes(logging.Handler):
    def __init__(self, notices: list[str]) -> None:
        super().__init__(logging.INFO)
        self._notices = notices

    def emit(self, record: logging.LogRecord) -> None:
        self._notices.append(record.getMessage())


@contextmanager
def _noting(notices: list[str]) -> Iterator[None]:
    """What mixprec has to say inside, which Python alone hears of through its logger."""
    logger, handler = logging.getLogger("mixprec"), _Notes(notices)
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
