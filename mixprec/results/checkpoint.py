"""A checkpoint that mixprec wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mixprec.checkpoint.integrity import card_of, verify, weight_bytes
from mixprec.compress.module import ModuleReport
from mixprec.core.arguments import typed
from mixprec.core.errors import UserError, from_pydantic
from mixprec.models.modelfiles import CARD
from mixprec.plan import schema
from mixprec.report.formatting import size
from mixprec.report.quality import coverage_table, formats_in, worst_table
from mixprec.report.tables import Table
from mixprec.results.base import Result


@dataclass(frozen=True, repr=False)
class Checkpoint(Result):
    """A folder, and address -> how well its module was solved; a checkpoint that was loaded has no reports."""

    folder: Path
    reports: Mapping[str, ModuleReport] = field(default_factory=dict, repr=False)

    @classmethod
    @typed()
    def load(cls, folder: str | Path) -> Checkpoint:
        """A checkpoint on disk. Raises UserError where it is none of mixprec's, or its files were changed."""
        folder = Path(folder)
        if not verify(folder):
            raise UserError(f"{folder}: {CARD} with checksums is missing; mixprec.compress writes checkpoints")
        return cls(folder)

    @cached_property
    def plan(self) -> schema.Plan:
        """What it was compressed by. Raises UserError for a plan of another schema."""
        try:
            return schema.Plan.model_validate(card_of(self.folder).get("plan", {}))
        except ValidationError as problem:
            raise from_pydantic(problem, f"{self.folder / CARD}: plan", schema.Plan) from None

    @property
    def format(self) -> str:
        """How weights lie on disk: dense, compressed-tensors, gptq or gguf."""
        return str(card_of(self.folder).get("checkpoint", {}).get("format", "dense"))

    @property
    def bytes(self) -> int:
        """Of the files of weights."""
        return weight_bytes(self.folder) or 0

    def tables(self) -> Mapping[str, Table]:
        count = f"{len(self.plan.changed)} of {len(self.plan.modules)} modules"
        changed = {address: report for address, report in self.reports.items() if report.method}
        told = worst_table(changed) if changed else formats_in(self.plan)
        made = {f"{self.folder}: {count}, {self.format}, {size(self.bytes)}": told}
        reached = coverage_table(changed)
        return made | ({"Calibration tokens of experts": reached} if reached.rows else {})

    def rows(self) -> list[dict[str, Any]]:
        """One row per module."""
        return [
            {"address": address, "format": str(line.format), "method": line.method or self.plan.method}
            | (self.reports[address]._asdict() if address in self.reports else {})
            for address, line in self.plan.modules.items()
        ]

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.folder)!r})"
