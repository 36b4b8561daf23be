"""Several runs compared: their page, and what could not be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixprec.report.compare import verdict
from mixprec.report.tables import Table, variant_table
from mixprec.results.base import Result

if TYPE_CHECKING:
    from mixprec.report.comparison import Compared


@dataclass(frozen=True, repr=False)
class Comparison(Result):
    """``page``: the file; ``summary``: as of one run, variants named with their run; ``left_out``: what -> why not."""

    page: Path
    summary: Mapping[str, Any] = field(repr=False)
    left_out: Mapping[str, str]
    one_model: bool

    @classmethod
    def of(cls, found: Compared, page: Path) -> Comparison:
        """What was written to ``page``."""
        return cls(page, found.run.summary, dict(found.left_out), found.one_model)

    def tables(self) -> Mapping[str, Table]:
        return {"Variants": variant_table(self.summary, brief=True)}

    def notes(self) -> list[str]:
        return [f"• {sentence}" for sentence in verdict(self.summary)] if self.one_model else []

    def rows(self) -> list[dict[str, Any]]:
        """One row per variant."""
        return [{"variant": name, **variant} for name, variant in self.summary["variants"].items()]

    def __repr__(self) -> str:
        return f"Comparison({str(self.page)!r}: {len(self.summary['variants'])} variants)"
