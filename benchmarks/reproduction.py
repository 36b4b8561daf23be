"""The paper's findings on a small model: which hold, which don't, and which can't be decided there.

python benchmarks/reproduction.py [--quick] [--data FOLDER] [--work FOLDER] [--only RECIPE …] --json OUT

Runs recipes/small/*.yaml with SmolLM2-135M, each into its own run folder of --work: a killed run continues, and what is
there is taken. Damage is KL to the original on the bundled held-out traces, and nats of the right answers of the four
benchmarks behind a fixed text (``protocol: likelihood``), never accuracy of generated answers: the model is near chance
there. Importance is of the model after it learned from the bundled traces, and intervals there are of resamples of
traces. A comparison holds where its paired 95% interval excludes 0 on the paper's side, fails where it excludes 0 on
the other side, and is open otherwise.

Keys of OUT (null: not run)
    findings        what the paper says -> verdict (holds, fails, open, undecidable), where, and the numbers
    holds           how many hold
    fails           how many fail
    open            how many the intervals leave open
    undecidable     how many can't be decided at this scale
    cpu_seconds     of this call, and of what it started
    model           what was compressed
    quick           whether this was a quick run: eight questions of each benchmark, one passage
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from pathlib import Path
from typing import Any

import machine
from reproduction_findings import FINDINGS, Finding

ROOT = Path(__file__).resolve().parents[1]
QUICK = ("evaluate.limit=8", "evaluate.text_passages=1", "compress.calibration.samples=4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", default=os.environ.get("MIXPREC_DATA") or str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--work", default="runs/benchmark_reproduction", help="run folders, kept")
    parser.add_argument("--only", nargs="*", help="recipes by name, such as table4; none: judge what is there")
    parser.add_argument("--json", required=True, help="where the findings go")
    arguments = parser.parse_args()
    recipes = dict.fromkeys(each.recipe for each in FINDINGS if each.recipe)
    wanted = list(recipes) if arguments.only is None else arguments.only
    work = Path(arguments.work) / ("quick" if arguments.quick else "whole")
    for name in wanted:
        _run(name, work / name, arguments)
    found = {each.claim: _judged(each, work) for each in FINDINGS}
    counts = Counter(each["verdict"] for each in found.values() if each)
    times = os.times()
    machine.write(
        arguments.json,
        __file__,
        {
            "findings": found,
            **{verdict: counts[verdict] for verdict in ("holds", "fails", "open", "undecidable")},
            "cpu_seconds": times.user + times.system + times.children_user + times.children_system,
            "model": "smollm2-135m-instruct",
            "quick": arguments.quick,
        },
    )


def _run(name: str, folder: Path, arguments: argparse.Namespace) -> None:
    import mixprec as mp
    from mixprec import recipe as recipes

    chosen = recipes.load(recipes.find(f"small/{name}"))
    parts = {"evaluate": chosen.evaluate, "compress": chosen.compress.calibration}
    changes = [each for each in QUICK if parts[each.partition(".")[0]]]
    mp.run(f"small/{name}", folder, data=Path(arguments.data), change=tuple(changes if arguments.quick else ()))


def _judged(finding: Finding, work: Path) -> dict[str, Any] | None:
    """A finding's verdict; None where its recipe was not run."""
    where = {"paper": finding.paper, "recipe": finding.recipe}
    if finding.judge is None:
        return {"verdict": "undecidable", "why": finding.why, **where}
    folder = work / str(finding.recipe)
    if not (folder / "summary.json").is_file():
        return None
    return finding.judge(folder) | where


if __name__ == "__main__":
    main()
