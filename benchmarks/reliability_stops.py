"""Stages that a signal stops or that find the disk full, each started again (tests/faults/kills.py)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from reliability_kills import Struck

if TYPE_CHECKING:
    from faults import kills
    from reliability import Rows

#: How often each kind of fault strikes.
_COUNTS: dict[kills.Hit, int] = {"term": 30, "int": 30, "full": 120}
_QUICK: dict[kills.Hit, int] = {"term": 3, "int": 3, "full": 6}


def measure(work: Path, rows: Rows, quick: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Figures, and what was wrong by case."""
    struck = Struck(work, rows, _QUICK if quick else _COUNTS)
    figures = {
        "signals": struck.total("term", "int"), "signals_identical": struck.good("term", "int"),
        "full_disks": struck.total("full"), "full_disks_identical": struck.good("full"),
    }  # fmt: skip
    return figures, struck.wrong
