"""What a recipe takes on several machines, by arithmetic: jobs, GPUs, hours, and bytes that go over the network."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping
from typing import Final, Literal, NamedTuple, get_args

from mixprec.models.decoder import Decoder
from mixprec.pipeline.checks import Checked
from mixprec.pipeline.costs import stages
from mixprec.pipeline.jobs import Job, gpus_of, jobs_of
from mixprec.pipeline.rates import CPU, H200, Rates
from mixprec.pipeline.stage import Stage
from mixprec.recipe import Recipe

On = Literal["ray", "slurm", "torchrun"]
ON: Final[tuple[On, ...]] = get_args(On)

#: Bytes of a second moment, and of a solved weight as processes hand it to one another: restored, code, and scales.
_MOMENT, _SOLVED = 4, 2 + 1 + 0.25
#: Stages whose work processes of torchrun share; all others are done by one.
_SHARED: Final = ("importance", "guidance", "sensitivity", "ablation", "compress", "tune", "distill")


class Cluster(NamedTuple):
    """``machines`` with so many ``gpus`` each, which work at ``rates``; without GPUs, so many cores. ``link``,
    ``network``: bytes a second of a GPU to others of its machine, and to those of other machines. ``storage``: bytes a
    second that a machine reads from and writes to the folder that all share."""

    machines: int
    gpus: int
    rates: Rates
    link: float
    network: float
    storage: float

    @property
    def all(self) -> int:
        """GPUs of all machines."""
        return self.machines * self.gpus


def h200s(machines: int, gpus: int = 8) -> Cluster:
    """Machines with H200s, by data sheets: NVLink with 450 GB/s each way for a GPU, a network card of 400 Gb/s for each
    GPU; storage of 20 GB/s for each machine is assumed."""
    return Cluster(machines, gpus, H200, link=450e9, network=50e9, storage=20e9)


def cores(machines: int, count: int) -> Cluster:
    """Machines without GPUs: a job has one core; network and storage of 10 Gb/s are assumed."""
    return Cluster(machines, count, CPU, link=5e9, network=1.25e9, storage=1.25e9)


class Placed(NamedTuple):
    """A job, or under torchrun a stage. ``gpus``: that it uses at once. ``seconds``: until it is done, None where
    nothing tells, and with ``most`` no longer than that; ``storage``, ``network``: bytes from and to the shared folder,
    and between processes; ``memory``: bytes in each process, at the most."""

    name: str
    gpus: int
    seconds: float | None
    memory: int
    storage: int
    network: int = 0
    most: bool = False


class Placing(NamedTuple):
    """``listed``: all jobs. ``seconds``: until the last one is done; ``gpu_seconds``: of all GPUs that they hold. None
    where a job's aren't known."""

    listed: list[Placed]
    seconds: float | None
    gpu_seconds: float | None

    @property
    def storage(self) -> int:
        """Bytes from and to the shared folder."""
        return sum(each.storage for each in self.listed)

    @property
    def network(self) -> int:
        """Bytes between processes."""
        return sum(each.network for each in self.listed)


def placing(chosen: Recipe, found: Checked, on: On, cluster: Cluster) -> Placing:
    """What a recipe takes on a cluster."""
    listed = stages(chosen, found, cluster.rates)
    if on == "torchrun":
        assert found.inventory is not None
        placed = [_together(each, found.inventory, cluster) for each in listed]
        seconds = _sum(each.seconds for each in placed)
        return Placing(placed, seconds, None if seconds is None else seconds * cluster.all)
    jobs = jobs_of(chosen, max(1, cluster.all // max(1, gpus_of(chosen, Job("evaluate"), cluster.gpus))))
    placed = [_apart(job, chosen, listed, cluster) for job in jobs]
    held = _sum(None if each.seconds is None else each.seconds * max(each.gpus, 1) for each in placed)
    return Placing(placed, _last(jobs, placed, cluster.all), held)


def _sum(numbers: Iterator[float | None]) -> float | None:
    known = list(numbers)
    return None if None in known else sum(number for number in known if number is not None)


#: Kind of job -> the stages of the estimate that it does.
_STAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "prepare": ("distill", "generate", "importance", "updates", "guidance", "candidates", "sensitivity"),
    "cells": ("ablation",),
    "reference": ("evaluation",),
    "evaluate": ("evaluation",),
    "benchmarks": ("benchmarks", "likelihood"),
    "compress": ("compress", "tune"),
}


def _apart(job: Job, chosen: Recipe, listed: list[Stage], cluster: Cluster) -> Placed:
    """A job by itself: its stages, or its part of those that several jobs do."""
    kinds = _STAGES.get(job.kind, (job.kind,))
    # An ablation whose cells are jobs has only to be put together.
    put_together = job.kind == "ablation" and len(job.after) > 1
    shared = job.kind != "benchmarks" or job.of in chosen.answering
    own = [each for each in listed if _of(each, job, kinds, shared) and not put_together]
    variants = max(1, len(chosen.all_variants))
    answering = len(chosen.answering) if job.of in chosen.answering else 1
    parts = {"benchmarks": answering, "reference": variants + 1, "evaluate": variants + 1}
    part = job.part[1] if job.kind == "cells" else parts.get(job.kind, 1)
    moved = sum(each.traffic.read + each.traffic.written for each in own) // part
    known = _sum(each.seconds for each in own)
    seconds = None if known is None else known / part + moved / cluster.storage
    memory = max((each.memory for each in own), default=0)
    most = any(each.most for each in own)
    return Placed(job.name, gpus_of(chosen, job, cluster.gpus), seconds, memory, moved, most=most)


def _of(stage: Stage, job: Job, kinds: tuple[str, ...], shared: bool) -> bool:
    """Whether a job does a stage; ``shared``: it has its part of those that name no variant."""
    kind, _, name = stage.name.partition(" ")
    return kind in kinds and (name == job.of or (shared and not name))


def _last(jobs: list[Job], placed: list[Placed], gpus: int) -> float | None:
    """When the last job is done, where each starts as soon as those before it are done and GPUs are free."""
    known = dict(zip((job.name for job in jobs), placed, strict=True))
    if any(each.seconds is None for each in placed):
        return None
    free, now, done, waiting = gpus, 0.0, set[str](), list(jobs)
    working: list[tuple[float, str]] = []
    while waiting or working:
        for job in [job for job in waiting if done.issuperset(job.after)]:
            need = min(max(known[job.name].gpus, 1), gpus)
            if need <= free:
                free -= need
                waiting.remove(job)
                heapq.heappush(working, (now + (known[job.name].seconds or 0.0), job.name))
        now, name = heapq.heappop(working)
        done.add(name)
        free += min(max(known[name].gpus, 1), gpus)
    return now


def _together(stage: Stage, inventory: Decoder, cluster: Cluster) -> Placed:
    """A stage by all processes, one on each GPU."""
    kind = stage.name.partition(" ")[0]
    count = cluster.all if kind in _SHARED else 1
    moved = stage.traffic.read * (cluster.machines if count > 1 else 1) + stage.traffic.written
    sent = handed(inventory, count) if kind == "compress" and count > 1 else 0
    slowest = cluster.network if cluster.machines > 1 else cluster.link
    seconds = None if stage.seconds is None else stage.seconds / count + moved / cluster.machines / cluster.storage
    if seconds is not None and count > 1:
        seconds += sent / count / slowest
    return Placed(stage.name, count, seconds, stage.memory, moved, sent, stage.most)


def handed(inventory: Decoder, count: int) -> int:
    """Bytes that so many processes send one another while they compress a model: second moments, added up in a ring,
    and what each has solved, to all others."""
    moments = sum(_MOMENT * group[0].in_features ** 2 for group in inventory.groups)
    solved = sum(_SOLVED * linear.weights for linear in inventory.linears)
    return math.ceil(2 * (count - 1) * moments + (count - 1) * solved)
