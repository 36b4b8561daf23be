"""The code itself: how much there is, what it costs to start, and whether it still computes what it did.

python benchmarks/structure.py [--quick] [--base COMMIT] [--work FOLDER] [--only JOB …] --json OUT

The present working tree against the commit ``--base``, which lies as it was in the work folder. Codes: SmolLM2-135M is
compressed by every method with `mixprec compress`, by the code of both, each in a process of its own with one thread,
with the same plan and calibration (the bundled traces, 32 x 512 tokens; --quick: 8 x 256), and every tensor of both
checkpoints is compared byte for byte. What the base's code made stays in the work folder for the next run. ``--only``
names jobs (structure_codes.py lists them); with none, ``--only nothing``, no model is compressed.

Keys of OUT (null: not measured)
    lines_before        lines of Python in mixprec/ without contrib/, at the base
    lines               the same now
    lines_contrib       lines of mixprec/contrib/ now
    import_seconds      CPU seconds of a fresh process that does `import mixprec` and nothing else; median
    validate_cpu_seconds    CPU seconds of `mixprec validate quickstart`; median
    walks               files that run a model's blocks one after another: they open each with its weights, or loop over
                        the blocks of a loaded model and call them
    walks_before        the same at the base
    walks_in            their names
    circles             groups of files that import one another, at module level or inside functions; imports that only
                        type checkers see do not count
    circles_before      the same at the base
    circles_files       files in the groups, now
    circles_with_types  groups where imports for types count too
    circles_in          the groups, now
    api_lines           lines of code in the notebook of the public API under docs/
    states_peak_bytes_32    peak memory of calibration states, 32 x 512 tokens (structure_states.py)
    states_peak_bytes_128   the same for 128 x 512 tokens
    states_growth       the second over the first
    plans_changed       whether `mixprec plan` of one recipe has other text than before: 0 or 1
    codes_compared      tensors compared
    codes_changed       tensors with other bytes, or in one of the two checkpoints only
    codes_changed_in    per job with changed tensors: how many, which share of their bytes, and the first names
    gptq_cpu_before     CPU seconds of `mixprec compress`, GPTQ w3g64, by the base's code: the least of runs that take
                        turns with the present code's
    gptq_cpu_after      the same by the present code
    gptq_speed_ratio    the first over the second: above 1 is faster than before
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import machine
import structure_codes as codes
import structure_source as source

HERE = Path(__file__).resolve().parent
BASE = "2d7dc41"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--work", default=str(Path(tempfile.gettempdir()) / "mixprec-structure"))
    parser.add_argument("--only", nargs="+", default=list(codes.JOBS))
    arguments = parser.parse_args()
    work = Path(arguments.work)
    base = tree(arguments.base, work)
    figures = {**sizes(base), **starts(work), **states(work)}
    samples, tokens = (8, 256) if arguments.quick else (32, 512)
    figures |= codes.measure(base, HERE.parent, work / f"{samples}x{tokens}", samples, tokens, arguments.only)
    machine.write(arguments.json, __file__, figures)


def tree(commit: str, work: Path) -> Path:
    """The files of a commit, in a folder of the work folder."""
    git = ["git", "-C", str(HERE.parent)]
    full = subprocess.run([*git, "rev-parse", commit], capture_output=True, text=True, check=True).stdout.strip()
    folder = work / full
    if not (folder / "mixprec").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run([*git, "archive", full], capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def sizes(base: Path) -> dict[str, Any]:
    """What is read off the source."""
    now = source.tree(HERE.parent / "mixprec")
    before = source.tree(base / "mixprec")
    groups, walks = source.circles(now), source.walks(now)
    notebooks = sorted((HERE.parent / "docs").glob("*.ipynb"))
    return {
        "lines_before": source.lines(before),
        "lines": source.lines(now),
        "lines_contrib": source.lines(now, contrib=True),
        "walks": len(walks),
        "walks_before": len(source.walks(before)),
        "walks_in": ", ".join(walks),
        "circles": len(groups),
        "circles_before": len(source.circles(before)),
        "circles_files": sum(len(group) for group in groups),
        "circles_with_types": len(source.circles(now, types=True)),
        "circles_in": "; ".join(" - ".join(group) for group in groups),
        "api_lines": source.notebook_lines(notebooks[0]) if notebooks else None,
    }


def starts(work: Path) -> dict[str, float]:
    """What it costs to start."""
    repository = HERE.parent

    def median(*command: str, times: int = 5) -> float:
        return statistics.median(codes.cpu_seconds(repository, work, *command) for _ in range(times))

    median("-c", "import mixprec", times=1)  # writes what Python compiles
    return {
        "import_seconds": median("-c", "import mixprec"),
        "validate_cpu_seconds": median("-m", "mixprec", "validate", "quickstart", times=3),
    }


def states(work: Path) -> dict[str, float]:
    """Peak memory of calibration states, by a script of its own."""
    keys = ("states_peak_bytes_32", "states_peak_bytes_128", "states_growth")
    script, out = HERE / "structure_states.py", work / "states.json"
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    subprocess.run([sys.executable, str(script), "--json", str(out)], check=True, env=environment)
    found = json.loads(out.read_text(encoding="utf-8"))
    return {key: found[key] for key in keys}


if __name__ == "__main__":
    main()
