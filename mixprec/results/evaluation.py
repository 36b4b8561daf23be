"""How close a model is to its original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixprec.core import artifacts
from mixprec.core.arguments import typed
from mixprec.report.formatting import integer, interval, percent, significant
from mixprec.report.shapes import read_fidelity
from mixprec.report.tables import Cell, Column, Table
from mixprec.results.base import Result


@dataclass(frozen=True)
class Fidelity:
    """Means over ``tokens`` predicted tokens of ``passages``; KL(original || model) in nats per token.

    ``kl_ci``: 95% bootstrap interval over passages, None with one passage.
    """

    tokens: int
    passages: int
    perplexity: float
    kl: float
    kl_ci: tuple[float, float] | None
    kl_median: float
    kl_p99: float
    top1_agreement: float

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Fidelity:
        """From a part of result.json."""
        ci = row["kl_mean_ci"]
        same = {
            name: row[name] for name in ("tokens", "passages", "perplexity", "kl_median", "kl_p99", "top1_agreement")
        }
        return cls(kl=row["kl_mean"], kl_ci=None if ci is None else (ci[0], ci[1]), **same)


@dataclass(frozen=True, repr=False)
class Evaluation(Result):
    """result.json as a value; ``data`` is its content. ``skipped``: spans of the traces, by reason."""

    model: str
    data: Mapping[str, Any] = field(repr=False)
    skipped: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    @typed()
    def load(cls, path: str | Path, model: str = "") -> Evaluation:
        """Read result.json. Raises UserError where it is missing, damaged or none."""
        path = Path(path)
        return cls(model or path.parent.name, read_fidelity(path))

    def save(self, path: str | Path) -> None:
        """Write result.json."""
        artifacts.write_json(Path(path), self.data)

    @property
    def main(self) -> Fidelity:
        """On traces, or on text where there are none."""
        return Fidelity.of(self.data["traces"] or self.data["text"])

    @property
    def kl(self) -> float:
        """Mean KL(original || model), nats per predicted token."""
        return self.main.kl

    @property
    def perplexity(self) -> float:
        return self.main.perplexity

    @property
    def text(self) -> Fidelity | None:
        """On text, where it was evaluated on any."""
        return Fidelity.of(self.data["text"]) if self.data["text"] else None

    @property
    def per_behaviour(self) -> dict[str, Fidelity]:
        """Over the tokens of each behaviour's spans."""
        return {name: Fidelity.of(row) for name, row in (self.data["behaviours"] or {}).items() if row}

    def tables(self) -> Mapping[str, Table]:
        titles = ("n", "perplexity", "KL mean", "KL median", "KL p99", "top-1")
        rows = []
        for name, part in self._parts().items():
            numbers = [significant(part.kl_median), significant(part.kl_p99), percent(part.top1_agreement)]
            cells = [Cell(integer(part.tokens)), Cell(significant(part.perplexity, 4))]
            cells += [Cell(significant(part.kl), interval(part.kl_ci)), *map(Cell, numbers)]
            rows.append([Cell(name), *cells])
        return {self.model: Table([Column("tokens of", numeric=False), *map(Column, titles)], rows)}

    def notes(self) -> list[str]:
        skipped = [f"skipped: {dict(sorted(self.skipped.items()))}"] if self.skipped else []
        return [*self.data.get("notes", ()), *skipped]

    def rows(self) -> list[dict[str, Any]]:
        """One row for traces, for text and for each behaviour."""
        return [{"tokens of": name, **vars(part)} for name, part in self._parts().items()]

    def _parts(self) -> dict[str, Fidelity]:
        parts = {"traces": self.data["traces"], "text": self.data["text"]}
        return {name: Fidelity.of(row) for name, row in parts.items() if row} | self.per_behaviour

    def __repr__(self) -> str:
        return f"Evaluation({self.model}: KL {self.kl:.4g} on {self.main.tokens} tokens)"
