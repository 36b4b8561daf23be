"""Artifacts of every kind, damaged (tests/faults/corruption.py)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults import corruption

if TYPE_CHECKING:
    from reliability import Rows


def measure(work: Path, rows: Rows, quick: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Figures, and what was wrong by case."""
    listed = corruption.gallery(work)
    gauge = corruption.Gauge(listed)
    cases = {case.name: case for case in corruption.cases(listed, 200 if quick else 1200)}
    found = list(rows.each(cases, lambda name: {"outcome": gauge.outcome(cases[name])}))
    counts = Counter(row["outcome"] for row in found)
    figures = {
        "corruptions_tried": len(found),
        "corruptions_detected": sum(counts[each] for each in corruption.GOOD),
        "corruptions_refused": counts["refused"],
        "corruptions": {each: counts[each] for each in corruption.GOOD},
    }
    return figures, {row["case"]: row["outcome"] for row in found if row["outcome"] not in corruption.GOOD}
