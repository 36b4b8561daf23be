"""A plan with the model that it is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mixprec.checkpoint import check as checking
from mixprec.checkpoint.base import check_plan
from mixprec.checkpoint.formats import checkpoint_format
from mixprec.checkpoint.runtimes import packed_for
from mixprec.core.arguments import typed
from mixprec.core.errors import UserError
from mixprec.models.model import Model
from mixprec.plan import bits, schema
from mixprec.report.formatting import integer, size
from mixprec.report.tables import Cell, Column, Table
from mixprec.results.base import Result


@dataclass(frozen=True, repr=False)
class Plan(Result):
    """``modules``: address -> what happens to it, for every linear module of ``model``."""

    model: Model
    content: schema.Plan = field(repr=False)

    @classmethod
    @typed()
    def load(cls, model: Model | str, path: str | Path) -> Plan:
        """Read plan.json, made for ``model``. Raises UserError naming all wrong keys, formats and modules at once."""
        model = model if isinstance(model, Model) else Model(model)
        return cls(model, schema.load_plan(Path(path), model.decoder))

    def save(self, path: str | Path) -> None:
        """Write plan.json: one line per module, made to be read, edited and diffed."""
        schema.save_plan(Path(path), self.content)

    @property
    def modules(self) -> dict[str, schema.ModulePlan]:
        return self.content.modules

    @property
    def method(self) -> str:
        """The method of all modules that name none."""
        return self.content.method

    @cached_property
    def account(self) -> bits.Account:
        """Bits and bytes."""
        return bits.account(self.content, self.model.decoder)

    @typed()
    def check(
        self,
        runtime: str | None = None,
        format: str | None = None,
        *,
        version: str | None = None,
        device: str | None = None,
    ) -> None:
        """The checkpoint ``format`` holds the plan, and ``runtime``, where one is named, loads it.

        ``format``: by default what is packed for this runtime. ``version``: of the runtime, by default the newest that
        is known. ``device``: cpu, apple, or a generation of GPUs; by default the one that the runtime is made for.
        Raises UserError with what is refused, why, and the nearest plan that loads.
        """
        inventory, config = self.model.decoder, self.model.config
        if runtime is None:
            check_plan(checkpoint_format(format or "compressed-tensors"), self.content, inventory, config)
        else:
            target = checking.Target(runtime, format or packed_for(runtime), version, device)
            checking.require(self.content, inventory, config, target)

    @typed()
    def nearest(
        self,
        runtime: str,
        format: str | None = None,
        *,
        version: str | None = None,
        device: str | None = None,
    ) -> Plan:
        """This plan where ``runtime`` loads it, else the nearest one that it loads; options as in ``check``.

        Raises UserError where there is none.
        """
        target = checking.Target(runtime, format or packed_for(runtime), version, device)
        verdict = checking.check(self.content, self.model.decoder, self.model.config, target)
        if verdict.loads:
            return self
        if verdict.nearest is None:
            raise UserError(f"{target}: no packed plan near this one loads; {checking.advice(self.content, verdict)}")
        return Plan(self.model, verdict.nearest)

    def tables(self) -> Mapping[str, Table]:
        columns = [Column("format", numeric=False), Column("modules"), Column("weights")]
        rows = [
            [Cell(name), Cell(integer(total.modules)), Cell(integer(total.weights))]
            for name, total in self.account.formats.items()
        ]
        return {f"{self.content.model}, {self.method}": Table(columns, rows)}

    def notes(self) -> list[str]:
        found = self.account
        return [
            f"{found.effective_bits:.3f} effective bits per weight of the linear modules, {found.code_bits:.3f} of "
            f"codes; the whole model: {size(found.packed_bytes)} packed, {size(found.dense_bytes)} in 16 bits"
        ]

    def rows(self) -> list[dict[str, Any]]:
        """One row per module."""
        return [
            {"address": address, "label": self.model.decoder[address].label}
            | {"format": str(line.format), "sparsity": None if line.sparsity is None else str(line.sparsity)}
            | {"method": line.method or self.method, "why": line.why}
            | {"effective_bits": self.account.modules[address].effective_bits}
            for address, line in self.modules.items()
        ]

    def __repr__(self) -> str:
        return f"Plan({self.content.model}, {self.account.effective_bits:.3f} effective bits)"
