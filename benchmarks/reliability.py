"""Whether work is lost: kills, full disks, damaged files, strange files, and what hashing and memory cost

    python benchmarks/reliability.py [--quick] [--only PART …] [--minutes N] [--work FOLDER] --json OUT

Stages run on a tiny model in a process that faults strike (tests/faults). A case is a stage that is hit once and then
started again: it has to end with the bytes of one that was not hit, and nothing half-done may have a final name before.
Cases that are done stay in the work folder for as long as mixprec's code is the same, so a benchmark that was stopped
goes on. Parts: kills, stops (signals and full disks), corruption, fuzzing, memory, hashing, scaling, ray (where
mixprec[ray] is installed). Figures of parts that --only leaves out stay in OUT as they are; after --minutes no further
case is begun, and the figures are those of the cases that are done. Distillation is among the stages where TRL is
installed.

Keys of OUT (null: not measured)
    kills                  stages killed by SIGKILL: at calls that change a file, spread evenly over all calls of all
                           stages, and at random moments
    resumed_identical      of these, those that ended with the same bytes when they were started again
    kills_at_calls         of the kills, those at a call; a write that is hit is done by half
    signals                stages that SIGTERM or SIGINT stopped at random moments
    signals_identical      of these, those that ended with exit code 130 (or were done), and with the same bytes later
    full_disks             stages whose disk was full from one of their calls on
    full_disks_identical   of these, those that said so in one sentence, and ended with the same bytes later
    stages                 the stages
    calls                  calls of all stages that change something on the disk
    corruptions_tried      artifacts damaged: a bit flipped, cut, of another version, or another file
    corruptions_detected   of these, those that were refused with the file's name, or whose content was the same
    corruptions_refused    of these, those that were refused
    fuzz_cases             made-up files, texts and answers that readers were given
    fuzz_failures          of these, those that ended in a traceback or took more than their time or memory
    fuzz_targets           reader -> cases
    corruptions            what became of them -> how many
    overhead               CPU time of a run of SmolLM2-135M, rounded to 3 bits, over the same without hashing what it
                           writes and reads
    memory_prediction_error    largest relative difference of a stage's peak memory to what `mixprec explain` says of it
    memory_peaks           stage -> measured peak over predicted, SmolLM2-135M
    memory_measured_mb     stage -> measured peak, 10^6 bytes
    scaling_2proc_compress     speed of compression by two processes of one thread over that by one, by wall time
    scaling_2proc_compress_cpu     the same by CPU time of the busier of the two, where others share the machine
    scaling_2proc_equal_weights    share of the model's weights that are equal to the bit
    scaling_2proc_error    mean relative output error of the modules by two processes over that by one
    ray_results_equal      whether a run whose jobs a Ray cluster did left the bytes of one that ran here
    ray_files              files that were compared
    failures               part -> case -> what was wrong
    code                   part -> the code that it was measured on: a digest of mixprec's and of the faults'
    quick                  parts of which --quick measured a few cases of each kind
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import machine

from mixprec.core import environment

environment.settle()  # before torch is imported

_ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT / "tests"))

#: Part -> the file that measures it.
PARTS = {
    "kills": "reliability_kills",
    "stops": "reliability_stops",
    "corruption": "reliability_corruption",
    "fuzzing": "reliability_fuzzing",
    "memory": "reliability_memory",
    "hashing": "reliability_hashing",
    "scaling": "reliability_scaling",
    "ray": "reliability_ray",
}
#: What a part's measurements are held against and don't depend on: the estimate of memory.
_ESTIMATE = ("costs.py", "expected.py", "owncosts.py", "reckoning.py", "usage.py", "traffic.py", "memory.py")
KEYS = (
    "kills", "resumed_identical", "corruptions_tried", "corruptions_detected", "fuzz_cases", "fuzz_failures",
    "overhead", "memory_prediction_error", "scaling_2proc_compress", "ray_results_equal",
)  # fmt: skip


def code_stamp(part: str) -> str:
    """A digest of mixprec's code: what was measured holds for it alone."""
    files = sorted((_ROOT / "mixprec").rglob("*.py")) + sorted((_ROOT / "tests" / "faults").glob("*"))
    digest = hashlib.sha256()
    for path in files:
        if path.is_file() and not (part == "memory" and path.parent.name == "pipeline" and path.name in _ESTIMATE):
            digest.update(f"{path.relative_to(_ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def known(path: Path) -> dict[str, Any]:
    """The figures that are in a file already; of a file of other keys, or none, nothing."""
    from mixprec.core import artifacts

    found = artifacts.read_object(path) if path.is_file() else {}
    return {key: value for key, value in found.items() if key != "about"}


class Rows:
    """What was measured before, of this code; a row for each case."""

    def __init__(self, path: Path, stamp: str, until: float = math.inf) -> None:
        """``until``: the time (time.monotonic) after which no case is begun."""
        from mixprec.core import artifacts

        self._path, self._stamp, self._until = path, stamp, until
        self.done = {row["case"]: row for row in artifacts.rows_left(path, stamp)}

    def each(
        self, names: Iterable[str], measure: Callable[[str], dict[str, Any]], *, needed: bool = False
    ) -> Iterator[dict[str, Any]]:
        """A row for each name: the one that is there, or a new one, as long as there is time; where all are
        ``needed``, whether there is or not."""
        from mixprec.core import artifacts

        for name in names:
            if name not in self.done:
                if not needed and time.monotonic() > self._until:
                    continue
                row = {"stamp": self._stamp, "case": name, **measure(name)}
                artifacts.append_row(self._path, row)
                self.done[name] = row
            yield self.done[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "mixprec-reliability")
    parser.add_argument("--json", required=True)
    chosen = parser.parse_args()
    # Figures add up over calls for parts and for minutes; the command that makes them all has neither.
    sys.argv[1:] = ["--json", chosen.json]
    found = dict[str, Any].fromkeys(KEYS) | known(Path(chosen.json))
    until = time.monotonic() + 60 * chosen.minutes
    for part in chosen.only:
        stamp = code_stamp(part)
        rows = Rows(chosen.work / f"{part}.jsonl", stamp, until)
        figures, wrong = importlib.import_module(PARTS[part]).measure(chosen.work / part, rows, chosen.quick)
        found |= figures | told(found, part, wrong, stamp, chosen.quick)
        machine.write(chosen.json, __file__, found, [chosen.work])


def told(found: dict[str, Any], part: str, wrong: dict[str, str], stamp: str, quick: bool) -> dict[str, Any]:
    """What the file says of how a part was measured, and what was wrong; of the others what it said before."""
    failures = {name: each for name, each in (found.get("failures") or {}).items() if name != part}
    others = [name for name in found.get("quick") or [] if name != part]
    return {
        "failures": failures | ({part: wrong} if wrong else {}),
        "code": (found.get("code") or {}) | {part: stamp[:16]},
        "quick": sorted([*others, part]) if quick else others,
    }


if __name__ == "__main__":
    main()
