"""A run's jobs handed to an executor, each when those before it are done."""

from __future__ import annotations

from collections.abc import Iterable

from mixprec.core import events
from mixprec.core.errors import UserError, listed
from mixprec.core.progress import console
from mixprec.pipeline.executors.base import Done, Executor
from mixprec.pipeline.jobs import Job, jobs_of
from mixprec.recipe import Recipe

#: How often a job is started at most, where whoever does it dies.
STARTS = 4


def carry_out(chosen: Recipe, executor: Executor) -> None:
    """Do all jobs of a recipe. What doesn't stand on a job that failed is done in any case.

    Raises UserError with all that went wrong, RuntimeError with the traces of what is our mistake.
    """
    try:
        failed = _Schedule(jobs_of(chosen, executor.slots), executor).run()
    finally:
        executor.close()
    if crashes := [f"{each.name}: {each.crash}" for each in failed if each.crash]:
        raise RuntimeError("\n".join(crashes))
    if failed:
        raise UserError(listed("jobs that failed", [f"{each.name}: {each.problem}" for each in failed]))


class _Schedule:
    """Which jobs wait, are at work, and are done."""

    def __init__(self, jobs: Iterable[Job], executor: Executor) -> None:
        self._executor = executor
        self._waiting = {job.name: job for job in jobs}
        self._at_work: dict[str, Job] = {}
        self._starts: dict[str, int] = {}
        self._done: set[str] = set()
        self._failed: list[Done] = []

    def run(self) -> list[Done]:
        """Until nothing can be done any more; gives the jobs that failed."""
        self._start_ready()
        while self._at_work:
            for ended in self._executor.wait():
                self._end(self._at_work.pop(ended.name), ended)
            self._start_ready()
        return self._failed

    def _start_ready(self) -> None:
        ready = [job for job in self._waiting.values() if self._done.issuperset(job.after)]
        for job in ready[: self._executor.slots - len(self._at_work)]:
            self._start(self._waiting.pop(job.name))

    def _start(self, job: Job) -> None:
        self._starts[job.name] = self._starts.get(job.name, 0) + 1
        self._at_work[job.name] = job
        if not self._executor.tells:
            events.tell("stage", name=job.name, state="begun")
        self._executor.submit(job)

    def _end(self, job: Job, ended: Done) -> None:
        for notice in ended.notices:
            console.print(f"{job.name}: {notice}", soft_wrap=True)
        if ended.died and self._starts[job.name] < STARTS:
            count = self._starts[job.name] + 1
            console.print(
                f"{job.name}: whoever did it has died ({ended.died}); started again, {count} of {STARTS}: what it "
                "finished is kept",
                soft_wrap=True,
            )
            self._start(job)
        elif ended.died:
            why = f"died {STARTS} times, at last so: {ended.died}"
            self._failed.append(ended._replace(problem=why))
        elif ended.problem or ended.crash:
            console.print(f"{job.name}: failed; jobs that don't stand on it go on", soft_wrap=True)
            self._failed.append(ended)
        else:
            self._done.add(job.name)
            if not self._executor.tells:
                seconds = round(ended.seconds, 3)
                events.tell("stage", name=job.name, state="made", seconds=seconds, where=ended.where)
                console.print(f"{job.name}: done on {ended.where} in {ended.seconds:.0f} s", soft_wrap=True)
