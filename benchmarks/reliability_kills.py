"""Stages that are hit by a kill, a signal or a full disk, each started again (tests/faults/kills.py)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults import kills, smithy
from faults.stages import stages

if TYPE_CHECKING:
    from reliability import Rows

#: How often each kind of fault strikes.
_COUNTS: dict[kills.Hit, int] = {"kill": 240, "moment": 60, "full": 120, "term": 30, "int": 30}
_QUICK: dict[kills.Hit, int] = {"kill": 12, "moment": 6, "full": 6, "term": 3, "int": 3}


def measure(work: Path, rows: Rows, quick: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Figures, and what was wrong by case."""
    found: dict[str, list[dict[str, Any]]] = {}
    with stages(work / "made") as listed, smithy.smithy() as forks:
        bench = kills.Bench(forks, work / "hit")
        made: dict[str, kills.Whole] = {}

        def whole(name: str) -> kills.Whole:
            if name not in made:
                made[name] = bench.whole(listed[name])
            return made[name]

        def about(case: str) -> dict[str, Any]:
            found = whole(case.partition(",")[0])
            return {"calls": len(found.calls), "seconds": found.seconds}

        undisturbed = rows.each([f"{name}, whole" for name in listed], about, needed=True)
        known = {row["case"].partition(",")[0]: row for row in undisturbed}
        # Enough to spread cases over stages; what a case is compared with is made when one is struck.
        wholes = {name: kills.Whole({}, [""] * row["calls"], row["seconds"]) for name, row in known.items()}
        for hit, count in (_QUICK if quick else _COUNTS).items():
            cases = {case.name: case for case in kills.spread(wholes, hit, count)}

            def struck(name: str, cases: dict[str, kills.Case] = cases) -> dict[str, Any]:
                case = cases[name]
                problem = bench.problem(case, listed[case.stage], whole(case.stage))
                print(f"{name}: {problem or 'the same bytes'}", file=sys.stderr)
                return {"problem": problem}

            found[hit] = list(rows.each(cases, struck))

    def total(*hits: kills.Hit) -> int | None:
        return sum(len(found[hit]) for hit in hits) or None

    def good(*hits: kills.Hit) -> int | None:
        return sum(row["problem"] is None for hit in hits for row in found[hit]) if total(*hits) else None

    figures = {
        "kills": total("kill", "moment"), "resumed_identical": good("kill", "moment"), "kills_at_calls": total("kill"),
        "signals": total("term", "int"), "signals_identical": good("term", "int"),
        "full_disks": total("full"), "full_disks_identical": good("full"),
        "stages": sorted(wholes), "calls": sum(len(each.calls) for each in wholes.values()),
    }  # fmt: skip
    return figures, {row["case"]: row["problem"] for each in found.values() for row in each if row["problem"]}
