"""Where the jobs of a run are to be done, and what each of them gets."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from mixprec.core.errors import UserError

On = Literal["ray", "slurm"]
ON: Final[tuple[On, ...]] = get_args(On)


def _threads() -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) else 1


@dataclass(frozen=True)
class Placement:
    """``jobs``: how many at once, None: as many as fit. ``cpus``: cores of each, and its threads. ``gpus``: over how
    many ``device: auto`` spreads a model. ``slurm``: of submitit's parameters."""

    on: On
    jobs: int | None = None
    cpus: int = field(default_factory=_threads)
    gpus: int = 1
    slurm: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.on not in ON:
            raise UserError(f"--on {self.on}: not known; choose one of {', '.join(ON)}")
        for name in ("jobs", "cpus", "gpus"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} {value}: has to be at least 1")
        if self.slurm and self.on != "slurm":
            raise UserError("--slurm: goes with --on slurm")


#: Who does the jobs -> the package for it, which the extra of that name brings.
_PACKAGES: Final[Mapping[On, str]] = {"ray": "ray", "slurm": "submitit"}


def require(placement: Placement) -> None:
    """Raises UserError, with the command that installs it, where the package that does the jobs is missing."""
    package = _PACKAGES[placement.on]
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"--on {placement.on}: the package {package} is not installed; run: pip install 'mixprec[{placement.on}]'"
        )
