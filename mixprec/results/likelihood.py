"""How likely a model finds the answers of benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixprec.core import artifacts
from mixprec.core.arguments import typed
from mixprec.evaluate.likelihood import run as likelihoods
from mixprec.report.likelihood import NOTE, guesses, likelihood_table
from mixprec.report.shapes import read_likelihood
from mixprec.report.tables import Table
from mixprec.results.base import Result


@dataclass(frozen=True, repr=False)
class LikelihoodResult(Result):
    """likelihood.json as a value; ``data`` is its content. ``baseline``: what it is compared with."""

    data: Mapping[str, Any] = field(repr=False)
    baseline: LikelihoodResult | None = None

    @classmethod
    @typed()
    def load(cls, path: str | Path) -> LikelihoodResult:
        """Read likelihood.json, or that of a folder of ``bench``. Raises UserError as read_likelihood does."""
        path = Path(path)
        return cls(read_likelihood(path / "likelihood.json" if path.is_dir() else path))

    def save(self, path: str | Path) -> None:
        """Write likelihood.json."""
        artifacts.write_json(Path(path), self.data)

    @property
    def name(self) -> str:
        """The model's, for tables."""
        return str(self.data.get("labels", {}).get("model", "model"))

    def tables(self) -> Mapping[str, Table]:
        moved = {self.name: self._moved} if self.baseline else None
        return {"Likelihood of answers": likelihood_table(self._entries, moved)}

    def notes(self) -> list[str]:
        base = self.baseline.data["benchmarks"] if self.baseline else {}
        lost = sorted(set(self.data["benchmarks"]) - set(self._moved)) if self.baseline else []
        return [
            NOTE,
            *guesses(self._entries),
            *(
                f"{name}: not compared with the baseline, which {'has other questions' if name in base else 'lacks it'}"
                for name in lost
            ),
        ]

    def rows(self) -> list[dict[str, Any]]:
        """One row per benchmark and measure."""
        return [
            {"benchmark": name, "measure": measure, **{key: entry[measure][key] for key in ("mean", "ci", "n")}}
            for name, entry in self.data["benchmarks"].items()
            for measure in ("accuracy", "share", "gold_nll")
            if measure in entry
        ]

    @property
    def _entries(self) -> dict[str, Any]:
        return {self.name: likelihoods.brief(self.data)}

    @property
    def _moved(self) -> dict[str, Any]:
        return {} if self.baseline is None else likelihoods.differences(self.baseline.data, self.data)

    def __repr__(self) -> str:
        return f"LikelihoodResult({self.name}: {', '.join(self.data['benchmarks'])})"
