"""From where a run's jobs shall be done to who does them there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mixprec.pipeline.executors.placement import Placement, require

if TYPE_CHECKING:
    from mixprec.pipeline.executors.base import Executor
    from mixprec.pipeline.work import Work


def executor(placement: Placement, run: Work) -> Executor:
    """What does the jobs of ``run``. Raises UserError where its package is missing."""
    require(placement)
    from mixprec.pipeline.executors.worker import Order

    data = None if run.data is None else str(run.data.absolute())
    order = Order(run.text, run.name, str(run.out.absolute()), data, str(Path.cwd()))
    if placement.on == "ray":
        from mixprec.pipeline.executors.ray import OnRay

        return OnRay(order, run.recipe, placement)
    from mixprec.pipeline.executors.slurm import OnSlurm

    return OnSlurm(order, run.recipe, placement)
