"""How far two annotations of the same traces agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixprec.core import artifacts
from mixprec.report.formatting import integer, interval, words
from mixprec.report.tables import Cell, Column, Table
from mixprec.results.base import Result


@dataclass(frozen=True, repr=False)
class Agreement(Result):
    """agreement.json as a value; ``data`` is its content (docs/spans.md)."""

    data: Mapping[str, Any] = field(repr=False)

    def save(self, path: str | Path) -> None:
        """Write agreement.json."""
        artifacts.write_json(Path(path), self.data, seal=False)  # nothing reads it back

    @property
    def behaviours(self) -> Mapping[str, Any]:
        """Behaviour -> agreement in characters and in spans."""
        return dict(self.data["behaviours"])

    @property
    def importance(self) -> Mapping[str, Any] | None:
        """How alike both rank the modules; None where no model was given."""
        found: Mapping[str, Any] | None = self.data.get("importance")
        return found

    def tables(self) -> Mapping[str, Table]:
        names = "first {first}, second {second}".format(**self.data["names"])
        found = {}
        for unit in ("characters", "spans"):
            found[f"Agreement in {unit}: {names}"] = self._units(unit)
        found["Characters: label of the first (rows) and of the second (columns)"] = self._confusion()
        if self.importance is not None:
            found["Importance from both: how alike the modules rank"] = self._rankings(self.importance)
            found["Top modules over all behaviours: their ranks"] = self._moved(self.importance)
        return found

    def _units(self, unit: str) -> Table:
        shares = ["share_first", "share_second", "f1", *(["kappa"] if unit == "characters" else [])]
        titles = {"share_first": "of first's", "share_second": "of second's", "f1": "F1", "kappa": "kappa"}
        columns = [Column("behaviour", numeric=False), *map(Column, ("first", "second", "both"))]
        rows = []
        for behaviour, units in self.behaviours.items():
            row = units[unit]
            counts = [Cell(integer(row[key])) for key in ("first", "second", "both")]
            rows.append([Cell(words(behaviour)), *counts, *(_share(row, name) for name in shares)])
        return Table([*columns, *(Column(titles[name]) for name in shares)], rows)

    def _confusion(self) -> Table:
        table = self.data["confusion"]
        columns = [Column("", numeric=False), *(Column(words(name)) for name in table)]
        rows = [[Cell(words(name)), *(Cell(integer(count)) for count in row.values())] for name, row in table.items()]
        return Table(columns, rows)

    def _rankings(self, found: Mapping[str, Any]) -> Table:
        columns = [Column("behaviour", numeric=False), Column("Spearman"), Column("of the top ten in both")]
        parts = {**found["behaviours"], **({"mean": found["mean"]} if found["mean"] else {})}
        rows = [
            [Cell(words(name)), _share(row, "spearman"), _share(row, "top10_overlap", 1)] for name, row in parts.items()
        ]
        return Table(columns, rows)

    def _moved(self, found: Mapping[str, Any]) -> Table:
        columns = [Column("module", numeric=False), Column("first"), Column("second")]
        return Table(columns, [[Cell(str(row[key])) for key in ("label", "first", "second")] for row in found["moved"]])

    def notes(self) -> list[str]:
        data = self.data
        told = [f"traces in both: {data['traces']}"]
        if data["only_first"] or data["only_second"]:
            told.append(
                f"not compared: {data['only_first']} traces only in first, {data['only_second']} only in second"
            )
        if data["resamples"]:
            told.append(f"95% intervals of {data['resamples']} resamples of the traces")
        missing = set() if self.importance is None else set(data["scored"]) - set(self.importance["behaviours"])
        told += [f"no importance in one of both: {', '.join(sorted(missing))}"] if missing else []
        return told

    def rows(self) -> list[dict[str, Any]]:
        """One row per behaviour and unit, characters or spans."""
        return [
            {"behaviour": behaviour, "unit": unit, **row}
            for behaviour, units in self.behaviours.items()
            for unit, row in units.items()
        ]

    def __repr__(self) -> str:
        return f"Agreement({self.data['traces']} traces)"


def _share(row: Mapping[str, Any], name: str, digits: int = 2) -> Cell:
    value, bounds = row[name], row.get(f"{name}_ci")
    return Cell("–" if value is None else f"{value:.{digits}f}", interval(bounds) if bounds else "")
