"""Importance of every linear module for each behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mixprec.core import artifacts
from mixprec.core.arguments import typed
from mixprec.importance import artifact
from mixprec.report.grids import importance_grids
from mixprec.report.heatmap import still_heatmap
from mixprec.report.tables import Table, top_modules_table
from mixprec.results.base import Picture, Result, View


@dataclass(frozen=True, repr=False)
class Importance(Result):
    """importance.json as a value; ``data`` is its content (docs/importance.md)."""

    data: Mapping[str, Any] = field(repr=False)

    @classmethod
    @typed()
    def load(cls, path: str | Path) -> Importance:
        """Read importance.json, or that of a folder of ``attribute``. Raises UserError as artifact.load does."""
        path = Path(path)
        return cls(artifact.load(path / "importance.json" if path.is_dir() else path))

    def save(self, path: str | Path) -> None:
        """Write importance.json."""
        artifacts.write_json(Path(path), self.data)

    @cached_property
    def scores(self) -> dict[str, dict[str, float]]:
        """Behaviour -> address -> importance, of the behaviours that have spans."""
        return artifact.scores_of(self.data)

    @property
    def preset(self) -> str:
        """The formulas: paper or released."""
        return str(self.data.get("preset", ""))

    @typed()
    def top(self, count: int = artifact.TOP) -> View:
        """The ``count`` most important modules of each behaviour, best first."""
        found = artifact.top_modules(self.data, count)
        rows = tuple(
            {"behaviour": behaviour, **{key: module[key] for key in ("rank", "label", "address", "score", "relative")}}
            for behaviour, entry in found.items()
            for module in entry["top_modules"]
        )
        return View("Most important modules", top_modules_table({"behaviours": found}), rows)

    def heatmap(self) -> Picture:
        """Layer by kind, a panel per behaviour."""
        return Picture(still_heatmap(importance_grids(self.data)))

    def tables(self) -> Mapping[str, Table]:
        return self.top().tables()

    def rows(self) -> list[dict[str, Any]]:
        """One row per behaviour and module."""
        listed = self.data["modules"]
        rows = []
        for behaviour, scores in self.scores.items():
            shares = artifact.relative(list(scores.values())).tolist()
            for module, score, share in zip(listed, scores.values(), shares, strict=True):
                rows.append({"behaviour": behaviour, **module, "importance": score, "relative": share})
        return rows

    def __repr__(self) -> str:
        return f"Importance({len(self.data['modules'])} modules, {', '.join(self.scores)})"
