"""A model's scores on benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixprec.core import artifacts
from mixprec.core.arguments import typed
from mixprec.evaluate import bench
from mixprec.report.benchmarks import at_k_table, overview
from mixprec.report.shapes import read_benchmarks
from mixprec.report.tables import Table
from mixprec.results.base import Result


@dataclass(frozen=True)
class Score:
    """A mean over ``n`` questions and ``seeds`` passes, 0 to 1, with its 95% bootstrap interval."""

    mean: float
    ci: tuple[float, float] | None
    n: int
    seeds: int

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Score:
        """From a benchmark's entry."""
        ci = found["ci"]
        return cls(found["mean"], None if ci is None else (ci[0], ci[1]), found["n"], found["seeds"])


@dataclass(frozen=True, repr=False)
class BenchResult(Result):
    """benchmarks.json as a value; ``data`` is its content. ``baseline``: what it is compared with."""

    data: Mapping[str, Any] = field(repr=False)
    baseline: BenchResult | None = None

    @classmethod
    @typed()
    def load(cls, path: str | Path) -> BenchResult:
        """Read benchmarks.json, or that of a folder of ``bench``. Raises UserError as read_benchmarks does."""
        path = Path(path)
        return cls(read_benchmarks(path / "benchmarks.json" if path.is_dir() else path))

    def save(self, path: str | Path) -> None:
        """Write benchmarks.json."""
        artifacts.write_json(Path(path), self.data)

    @property
    def name(self) -> str:
        """The model's, for tables."""
        return str(self.data.get("labels", {}).get("model", "model"))

    @property
    def scores(self) -> dict[str, dict[str, Score]]:
        """Benchmark -> metric (accuracy; em and f1) -> score."""
        return {
            name: {
                metric: Score.of(entry[metric]) for metric in ("accuracy", "em", "f1") if entry.get(metric) is not None
            }
            for name, entry in self.data["benchmarks"].items()
        }

    def tables(self) -> Mapping[str, Table]:
        entries = {self.name: bench.brief(self.data)}
        moved = {self.name: self._moved} if self.baseline else None
        more = at_k_table(entries)
        shown = {"Benchmarks": overview(entries, moved, brief=True)}
        return shown | ({"Several samples of each question": more} if more.rows else {})

    def notes(self) -> list[str]:
        if self.baseline is None:
            return []
        base = self.baseline.data["benchmarks"]
        return [
            f"{name}: not compared with the baseline, which {'has other questions' if name in base else 'lacks it'}"
            for name in sorted(set(self.data["benchmarks"]) - set(self._moved))
        ]

    def rows(self) -> list[dict[str, Any]]:
        """One row per benchmark and metric."""
        return [
            {"benchmark": name, "metric": metric, **vars(score)}
            for name, scores in self.scores.items()
            for metric, score in scores.items()
        ]

    @property
    def _moved(self) -> dict[str, Any]:
        return {} if self.baseline is None else bench.differences(self.baseline.data, self.data)

    def __repr__(self) -> str:
        return f"BenchResult({self.name}: {', '.join(self.data['benchmarks'])})"
