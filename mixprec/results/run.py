"""A recipe's run: its folder and summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixprec.core.arguments import typed
from mixprec.report.benchmarks import overview, results_of
from mixprec.report.compare import in_short
from mixprec.report.formatting import size
from mixprec.report.likelihood import guesses, likelihood_table, likelihoods_of
from mixprec.report.rankings import shifts_table
from mixprec.report.shapes import read_summary
from mixprec.report.tables import Table, top_modules_table, variant_table
from mixprec.results.base import Result
from mixprec.results.checkpoint import Checkpoint
from mixprec.results.importance import Importance


@dataclass(frozen=True, repr=False)
class RunResult(Result):
    """``folder`` of a run, and its ``summary`` (summary.json)."""

    folder: Path
    summary: Mapping[str, Any] = field(repr=False)

    @classmethod
    @typed()
    def load(cls, folder: str | Path) -> RunResult:
        """A finished run on disk. Raises UserError as read_summary does."""
        return cls(Path(folder), read_summary(Path(folder) / "summary.json"))

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / "report.html"

    @property
    def importance(self) -> Importance | None:
        """Where the recipe computes it."""
        path = self.folder / "importance" / "importance.json"
        return Importance.load(path) if self.summary.get("behaviours") else None

    def checkpoint(self, variant: str) -> Checkpoint:
        """Of a variant. Raises UserError for one that has none, as the original hasn't."""
        return Checkpoint.load(self.folder / "variants" / variant / "checkpoint")

    def tables(self) -> Mapping[str, Table]:
        moved = (self.summary.get("benchmarks") or {}).get("differences")
        shown = {
            "Variants": variant_table(self.summary, brief=True),
            "Benchmarks": overview(results_of(self.summary), moved, brief=True),
            "Likelihood of answers": likelihood_table(
                likelihoods_of(self.summary), (self.summary.get("likelihood") or {}).get("differences")
            ),
            "Most important modules": top_modules_table(self.summary),
            "Importance moved from the original": shifts_table(self.summary),
        }
        return {title: table for title, table in shown.items() if table.rows}

    def notes(self) -> list[str]:
        """What was made and where, and how much it damages; the page has the rest."""
        told = (*self._made(), *in_short(self.summary), *guesses(likelihoods_of(self.summary)))
        return [f"• {sentence}" for sentence in told]

    def _made(self) -> list[str]:
        """Checkpoints by their size."""
        sizes: dict[str, list[str]] = {}
        for name, variant in (self.summary.get("variants") or {}).items():
            if variant.get("modules_quantized"):
                sizes.setdefault(size(variant.get("bytes_on_disk")), []).append(name)
        told = [f"The distilled model is in {self.folder}/distilled."] if self.summary.get("distilled") else []
        if sizes:
            parts = "; ".join(f"{', '.join(names)} ({each})" for each, names in sizes.items())
            told.append(f"Checkpoints in {self.folder}/variants/NAME/checkpoint: {parts}.")
        return told

    def rows(self) -> list[dict[str, Any]]:
        """One row per variant."""
        return [{"variant": name, **variant} for name, variant in (self.summary.get("variants") or {}).items()]

    def __repr__(self) -> str:
        return f"RunResult({str(self.folder)!r}: {', '.join(self.summary.get('variants') or {}) or 'no variants'})"
