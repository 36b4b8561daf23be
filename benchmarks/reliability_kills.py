"""Stages that are killed, each started again (tests/faults/kills.py)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults import kills, smithy
from faults.stages import stages

if TYPE_CHECKING:
    from reliability import Rows

#: How often each kind of fault strikes.
_COUNTS: dict[kills.Hit, int] = {"kill": 240, "moment": 60}
_QUICK: dict[kills.Hit, int] = {"kill": 12, "moment": 6}


class Struck:
    """What became of stages that were hit, by kind of fault."""

    def __init__(self, work: Path, rows: Rows, counts: Mapping[kills.Hit, int]) -> None:
        self._found: dict[str, list[dict[str, Any]]] = {}
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
            self.wholes = {name: kills.Whole({}, [""] * row["calls"], row["seconds"]) for name, row in known.items()}
            for hit, count in counts.items():
                cases = {case.name: case for case in kills.spread(self.wholes, hit, count)}

                def struck(name: str, cases: dict[str, kills.Case] = cases) -> dict[str, Any]:
                    case = cases[name]
                    problem = bench.problem(case, listed[case.stage], whole(case.stage))
                    print(f"{name}: {problem or 'the same bytes'}", file=sys.stderr)
                    return {"problem": problem}

                self._found[hit] = list(rows.each(cases, struck))

    def total(self, *hits: kills.Hit) -> int | None:
        """How many were hit; None for none."""
        return sum(len(self._found[hit]) for hit in hits) or None

    def good(self, *hits: kills.Hit) -> int | None:
        """How many of these went on as they should."""
        if self.total(*hits) is None:
            return None
        return sum(row["problem"] is None for hit in hits for row in self._found[hit])

    @property
    def wrong(self) -> dict[str, str]:
        """Case -> what was wrong."""
        return {row["case"]: row["problem"] for each in self._found.values() for row in each if row["problem"]}


def measure(work: Path, rows: Rows, quick: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Figures, and what was wrong by case."""
    struck = Struck(work, rows, _QUICK if quick else _COUNTS)
    figures = {
        "kills": struck.total("kill", "moment"), "resumed_identical": struck.good("kill", "moment"),
        "kills_at_calls": struck.total("kill"),
        "stages": sorted(struck.wholes), "calls": sum(len(each.calls) for each in struck.wholes.values()),
    }  # fmt: skip
    return figures, struck.wrong
