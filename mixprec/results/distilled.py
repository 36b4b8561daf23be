"""A student that was trained on a teacher's traces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixprec.checkpoint.integrity import card_of, verify
from mixprec.core.arguments import typed
from mixprec.core.errors import UserError
from mixprec.distill.lessons import COUNTED
from mixprec.models.modelfiles import CARD
from mixprec.report.formatting import integer, significant
from mixprec.report.losses import losses_figure
from mixprec.report.tables import Cell, Column, Table
from mixprec.results.base import Picture, Result
from mixprec.results.checkpoint import Checkpoint

_SIZES = {
    f"{side}_{key}": f"{side}: {words}"
    for side in ("training", "validation")
    for key, words in (("traces", "traces"), ("tokens", "tokens"), ("written", "tokens that the teacher wrote"))
}


@dataclass(frozen=True, repr=False)
class Distilled(Result):
    """The folder of the checkpoint; ``told``: what it learned from and how its losses went, as mixprec.json has it.

    ``speed``: tokens per second of training steps; None for one that was loaded, or made before.
    """

    folder: Path
    told: Mapping[str, Any]
    speed: float | None = None

    @classmethod
    @typed()
    def load(cls, folder: str | Path) -> Distilled:
        """A distilled student on disk. Raises UserError where it is none, or its files were changed."""
        folder = Path(folder)
        told = card_of(folder).get("distillation") if verify(folder) else None
        if not isinstance(told, dict):
            raise UserError(f"{folder}: {CARD} tells of no distillation; mixprec.distill writes such checkpoints")
        return cls(folder, told)

    @property
    def checkpoint(self) -> Checkpoint:
        """The folder as a checkpoint."""
        return Checkpoint(self.folder)

    @property
    def validation(self) -> list[tuple[int, float]]:
        """(step, loss on validation)."""
        return [(int(step), float(loss)) for step, loss in self.told["course"]["validation"]]

    def losses(self) -> Picture:
        """The losses over the steps."""
        return Picture(losses_figure(self.told["course"]))

    def tables(self) -> Mapping[str, Table]:
        course, counts = self.told["course"], self.told["counts"]
        rows = [
            [Cell(str(step)), Cell(significant(loss, 4), strong=step == course["kept_step"])]
            for step, loss in self.validation
        ]
        curve = Table([Column("step"), Column(f"{course['objective']} on validation")], rows)
        lines = [
            [Cell(words), Cell(integer(counts[key]))] for key, words in (COUNTED | _SIZES).items() if key in counts
        ]
        if self.told["options"]["packing"]:
            lines.append([Cell("rows, packed"), Cell(integer(self.told["rows"]))])
        return {str(self.folder): curve, "What it learned from": Table([Column("", numeric=False), Column("")], lines)}

    def notes(self) -> list[str]:
        course = self.told["course"]
        told = [f"Kept: step {course['kept_step']} of {course['steps']}; as written {course['written']:.4f}."]
        return told + ([f"{self.speed:.0f} training tokens per second."] if self.speed else [])

    def rows(self) -> list[dict[str, Any]]:
        """One row per measurement, of training and of validation."""
        course = self.told["course"]
        return [
            {"on": side, "step": step, "loss": loss}
            for side in ("training", "validation")
            for step, loss in course[side]
        ]

    def __repr__(self) -> str:
        return f"Distilled({str(self.folder)!r})"
