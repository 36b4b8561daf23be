"""Rows of pareto.py: one for each job that was measured, kept in the repository so that runs of several days add up.

A row is good for as long as its fingerprint is: of the job and its settings, model, calibration and evaluation, and of
what made it, which for us are the RULES of the stages, for a peer the pins of its environment.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def load(path: Path) -> list[Row]:
    """The rows of a file; none where there is none."""
    return list(json.loads(path.read_text(encoding="utf-8"))["rows"]) if path.is_file() else []


def save(path: Path, rows: Iterable[Row]) -> None:
    """One row a line, so that a new row is one line of a diff."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, sort_keys=True) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(f'{{"rows": [\n{lines}\n]}}\n', encoding="utf-8")
    part.replace(path)


def merged(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """New rows in the place of those of the same job, model and samples; sorted."""
    found = {place(row): row for row in (*old, *new)}
    return [found[key] for key in sorted(found)]


def place(row: Mapping[str, Any]) -> tuple[str, ...]:
    return str(row["model"]), f"{row['samples']:06}", f"{row['passages']:06}", str(row["job"])


def good(rows: Iterable[Row], fingerprints: Mapping[str, str]) -> dict[str, Row]:
    """Job -> row, of those whose fingerprint is the job's of today."""
    return {row["job"]: row for row in rows if fingerprints.get(row["job"]) == row["fingerprint"]}
