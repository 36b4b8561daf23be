"""The samples that methods calibrate on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixprec.calibration import data
from mixprec.core import artifacts
from mixprec.core.arguments import typed
from mixprec.core.errors import UserError
from mixprec.report.formatting import integer, percent
from mixprec.report.tables import Cell, Column, Table
from mixprec.results.base import Result


@dataclass(frozen=True, eq=False, repr=False)
class Calibration(Result, data.Calibration):
    """A calibration set, and ``warnings``: what should be known before solving with it.

    ``vocabulary``: digest of the tokenizer's that made it; empty where it isn't known.
    """

    warnings: tuple[str, ...] = ()
    vocabulary: str = ""

    @classmethod
    @typed()
    def load(cls, path: str | Path) -> Calibration:
        """Read what ``save`` wrote. Raises UserError for other files, damaged ones and other versions of it."""
        path = Path(path)
        tensors, about = artifacts.load_tensors(path)
        if about.get("artifact") != "calibration" or about.get("schema_version") != artifacts.SCHEMA_VERSION:
            raise UserError(
                f"{path}: holds no calibration set of schema {artifacts.SCHEMA_VERSION}; make it with mixprec.calibrate"
            )
        weights = tensors.get("weights")
        return cls(
            tensors["tokens"],
            weights,
            about["described"],
            about["digest"],
            tuple(about["warnings"]),
            about.get("vocabulary", ""),
        )

    def save(self, path: str | Path) -> None:
        """Write tokens, weights and description as one safetensors file."""
        tensors = {"tokens": self.tokens} | ({} if self.weights is None else {"weights": self.weights})
        about = {"described": self.described, "digest": self.digest, "warnings": self.warnings}
        about["vocabulary"] = self.vocabulary
        artifacts.save_tensors(
            Path(path), tensors, {"artifact": "calibration", "schema_version": artifacts.SCHEMA_VERSION, **about}
        )

    def tables(self) -> Mapping[str, Table]:
        titles = ["windows", "loops", "used", "tokens"]
        columns = [Column("source", numeric=False), *map(Column, titles)]
        keys = ("windows", "windows_looping", "used", "tokens")
        rows = [[Cell(str(row["source"])), *(Cell(integer(row[key])) for key in keys)] for row in self.rows()]
        samples, tokens = self.tokens.shape
        return {f"{samples} samples of {tokens} tokens": Table(columns, rows)}

    def notes(self) -> list[str]:
        figures = self.described["figures"]
        variety = f"{integer(figures['distinct_tokens'])} different tokens, the ten most frequent are "
        return [variety + percent(figures["top10_share"]), *self.warnings]

    def rows(self) -> list[dict[str, Any]]:
        """One row per source."""
        return [
            {"source": f"{each['kind']} {each['dataset' if each['kind'] == 'dataset' else 'name']}", **each}
            for each in self.described["sources"]
        ]

    def __repr__(self) -> str:
        return f"Calibration({len(self.tokens)} x {self.tokens.shape[1]} tokens, {self.digest[:12]})"
