"""Jobs on a Ray cluster, each in a process of its own."""

from __future__ import annotations

import os
from typing import Any

from mixprec.core.errors import UserError, reason
from mixprec.core.progress import console
from mixprec.pipeline.executors import worker
from mixprec.pipeline.executors.base import Done
from mixprec.pipeline.executors.placement import Placement
from mixprec.pipeline.executors.worker import Order
from mixprec.pipeline.jobs import Job, gpus_of
from mixprec.recipe import Recipe


class OnRay:
    """Hands jobs to the cluster that RAY_ADDRESS names or that runs here, else to one that is started for the run."""

    tells = False

    def __init__(self, order: Order, chosen: Recipe, placement: Placement) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self._ray, self._order, self._chosen, self._placement = ray, order, chosen, placement
        self._mine = not ray.is_initialized()
        if self._mine:
            _connect(ray)
        # A process for each job: what it took of memory, of a GPU's too, goes with it.
        self._do = ray.remote(max_calls=1, max_retries=0)(worker.do)
        self._left: dict[Any, Job] = {}
        self.slots = placement.jobs or self._fitting()

    def submit(self, job: Job) -> None:
        asked = self._do.options(
            num_cpus=self._placement.cpus,
            num_gpus=gpus_of(self._chosen, job, self._placement.gpus),
            name=job.name,
            runtime_env={"env_vars": worker.variables(self._placement.cpus)},
        )
        self._left[asked.remote(self._order, job)] = job

    def wait(self) -> list[Done]:
        ended, _ = self._ray.wait(list(self._left), num_returns=1)
        return [self._ended(each, self._left.pop(each)) for each in ended]

    def close(self) -> None:
        for each in self._left:
            self._ray.cancel(each, force=True)
        self._left.clear()
        if self._mine:
            self._ray.shutdown()

    def _ended(self, reference: Any, job: Job) -> Done:
        try:
            found: Done = self._ray.get(reference)
        except self._ray.exceptions.RayError as problem:  # the process or its machine is gone, or never came
            return Done(job.name, died=reason(problem))
        return found

    def _fitting(self) -> int:
        """How many jobs the cluster as it is can do at once; says so where it can do none."""
        gpus = gpus_of(self._chosen, Job("evaluate"), self._placement.gpus)
        have = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        count = 0
        for node in have:
            fit = int(node.get("CPU", 0) // self._placement.cpus)
            count += min(fit, int(node.get("GPU", 0) // gpus)) if gpus else fit
        if not count:
            console.print(
                f"--on ray: no machine of the cluster has {self._placement.cpus} cores and {gpus} GPUs; jobs wait "
                "until one joins",
                soft_wrap=True,
            )
        return max(count, 1)


def _connect(ray: Any) -> None:
    """Join the cluster that runs, or start one on this machine alone."""
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get("RAY_ADDRESS") or "auto"
    if address != "local":
        try:
            ray.init(address=address, **quiet)
            return
        except ConnectionError as problem:
            if address != "auto":
                raise UserError(f"RAY_ADDRESS={address}: no Ray cluster answers there ({reason(problem)})") from None
    ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
    console.print("--on ray: no cluster is running; one is started on this machine for this run", soft_wrap=True)
