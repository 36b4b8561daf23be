"""Predicted, or measured, damage of every module in every format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixprec.core.arguments import typed
from mixprec.models.decoder import Decoder
from mixprec.models.labels import parse_address
from mixprec.plan import sensitivity
from mixprec.plan.sensitivity import ALL, Sensitivity
from mixprec.report.formatting import words
from mixprec.report.heatmap import still_heatmap
from mixprec.report.sensitivity import choices, damage_grids, table_of_damage
from mixprec.report.tables import Table
from mixprec.results.base import Picture, Result, View


@dataclass(frozen=True, repr=False)
class Scores(Result):
    """Target -> table of damage: all tokens, and each behaviour that was asked for."""

    by_target: Mapping[str, Sensitivity]

    @classmethod
    @typed()
    def load(cls, *paths: str | Path, inventory: Decoder, identity: str | None = None) -> Scores:
        """Read the tables that ``save`` or the command line wrote. Raises UserError as sensitivity.load does."""
        found = [sensitivity.load(Path(path), inventory, identity) for path in paths]
        return cls({table.target: table for table in found})

    def save(self, folder: str | Path) -> list[Path]:
        """Write a table per target into a folder; gives their paths."""
        paths = {target: Path(folder) / sensitivity.file_name(t.scorer, target) for target, t in self.by_target.items()}
        for target, path in paths.items():
            sensitivity.save(path, self.by_target[target])
        return list(paths.values())

    @property
    def main(self) -> Sensitivity:
        """The table of all tokens; where there is none, the first."""
        return self.by_target.get(ALL) or next(iter(self.by_target.values()))

    @property
    def scorer(self) -> str:
        return self.main.scorer

    @property
    def method(self) -> str:
        """The method whose errors were scored."""
        return self.main.method

    @property
    def formats(self) -> list[str]:
        """What modules were scored in."""
        return choices(self.main)

    def top(self, count: int = 10, target: str = ALL) -> View:
        """The modules with the largest damage in the first format."""
        rows = tuple(row for row in self.rows() if row["target"] == target)
        return View("Largest predicted damage", table_of_damage(self.by_target[target], count), rows)

    def heatmap(self, target: str = ALL) -> Picture:
        """Layer by kind, a panel per format."""
        return Picture(still_heatmap(damage_grids(self.by_target[target])))

    def tables(self) -> Mapping[str, Table]:
        return {
            f"Largest predicted damage: {table.scorer}, {words(target)}": table_of_damage(table)
            for target, table in self.by_target.items()
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row per target, module and format."""
        return [
            {"target": target, "address": address, "layer": layer, "kind": kind, "format": choice, "damage": damage}
            for target, table in self.by_target.items()
            for address, row in table.scores.items()
            for layer, kind in [parse_address(address)]
            for choice, damage in row.items()
        ]

    def __repr__(self) -> str:
        return f"Scores({self.scorer}, {self.method}, {len(self.main.scores)} modules, {', '.join(self.by_target)})"
