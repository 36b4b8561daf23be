"""Made-up files, texts and answers for every reader (tests/faults/fuzzing.py), in pieces that are kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults import fuzzing

if TYPE_CHECKING:
    from reliability import Rows

#: Cases of each reader, and those of slow ones: a million in all.
_CASES, _SLOW, _PIECE = 56_000, {"gguf": 10_000, "recipe": 20_000}, 4_000


def measure(work: Path, rows: Rows, quick: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Figures, and what was wrong by case. What was found lies in the work folder, to be put into the corpus."""
    counts: dict[str, int] = {}
    wrong: dict[str, str] = {}
    failures = 0
    for target in fuzzing.targets(work):
        kind = target.name.partition(":")[0]
        wanted = 200 if quick else _SLOW.get(kind, _CASES)

        def tried(name: str, target: fuzzing.Target = target, wanted: int = wanted, kind: str = kind) -> dict[str, Any]:
            number = int(name.rpartition(" ")[2])
            count, faults = fuzzing.run(target, min(_PIECE, wanted), number)
            for place, fault in enumerate(faults):
                path = work / "found" / kind / f"{number}_{place}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(fault.content)
            print(f"{name}: {count} cases, {len(faults)} wrong", file=sys.stderr)
            return {"count": count, "faults": len(faults), "why": sorted({fault.why for fault in faults})[:5]}

        names = [f"{target.name} {number}" for number in range(max(wanted // _PIECE, 1))]
        for row in rows.each(names, tried):
            counts[target.name] = counts.get(target.name, 0) + row["count"]
            failures += row["faults"]
            if row["faults"]:
                wrong[row["case"]] = "; ".join(row["why"])
    figures = {"fuzz_cases": sum(counts.values()), "fuzz_failures": failures, "fuzz_targets": counts}
    return figures, wrong
