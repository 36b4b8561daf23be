"""Peak memory of every stage against what `mixprec explain` says of it.

One recipe of SmolLM2-135M goes through all stages, each in a process of its own that ends behind it, so that no stage
is measured with what an earlier one left; the next process goes on, as after a kill. They are forked by one that has
imported what they need.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reliability import Rows

_FORMATS = ["w3g64", "w4g64"]
#: Of methods that take long: blocks are compressed one by one, and the first ones take what all take.
_FIRST = {"default": "keep", "rules": [{"match": f"{layer}_*", "format": "w3g64"} for layer in range(1, 7)]}
_BUDGET = {"effective_bits": 3.7, "candidates": _FORMATS, "exchange": {"samples": 2, "proposals": 2}}
RECIPE = {
    "model": {"id": "smollm2-135m-instruct"},
    "traces": {"source": "bundled:attribution", "first": 4},
    "importance": {"preset": "paper"},
    "compress": {"method": "rtn", "calibration": {"traces": "bundled:attribution", "samples": 16, "tokens": 256}},
    "sensitivity": {"formats": _FORMATS, "samples": 4},
    "variants": {
        "tuned": {"plan": {"default": "w3g64"}, "tune": {"epochs": 1, "validation": 2, "samples": 6}},
        "rtn": {"plan": {"default": "w3g64"}},
        "budget": {"plan": {"budget": _BUDGET}},
        "gptq": {"plan": {**_FIRST, "method": "gptq"}},
        "awq": {"plan": {**_FIRST, "method": "awq"}},
    },
    "evaluate": {
        "traces": {"source": "bundled:held_out", "first": 2},
        "max_tokens": 512,
        "benchmarks": [{"name": "folio", "source": "QUESTIONS"}],
        "engine": {"kind": "transformers", "batch": 4},
        "limit": 2,
        "seeds": [0],
        "max_new_tokens": 32,
    },
}
_QUICK = "rtn"


def measure(work: Path, rows: Rows, quick: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Figures; nothing is wrong here that they don't say."""
    work.mkdir(parents=True, exist_ok=True)
    chosen, how = written(work, quick), ", quick" if quick else ""
    predicted = _child("predict", chosen, work / "predicted")["predicted"]
    cases = {f"peak of {name}{how}": name for name in predicted}
    with _Stages(chosen, work / "run", new=not rows.done.keys() & cases.keys()) as stages:
        found = list(rows.each(cases, lambda case: {"peak": stages.peak(cases[case])}))
    measured = {cases[row["case"]]: row["peak"] for row in found}
    peaks = {name: peak / predicted[name] for name, peak in measured.items()}
    figures = {
        "memory_prediction_error": max((abs(ratio - 1) for ratio in peaks.values()), default=None),
        "memory_peaks": peaks,
        "memory_measured_mb": {name: round(peak / 1e6) for name, peak in measured.items()},
    }
    return figures, {}


def written(work: Path, quick: bool) -> Path:
    """The recipe, and a few questions for it."""
    asked = [
        {"example_id": n, "premises": f"Ann has {n} apples.", "conclusion": "Ann has four.", "label": "False"}
        for n in range(4)
    ]
    questions = work / "folio.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    chosen = json.loads(json.dumps(RECIPE).replace('"QUESTIONS"', json.dumps(str(questions))))
    if quick:
        chosen["variants"] = {_QUICK: chosen["variants"][_QUICK]}
        del chosen["sensitivity"]
    path = work / ("quick.yaml" if quick else "memory.yaml")
    path.write_text(json.dumps(chosen), encoding="utf-8")
    return path


def _child(what: str, recipe: Path, out: Path) -> dict[str, Any]:
    """What a process tells that runs the recipe."""
    told = out.with_suffix(".json")
    subprocess.run([sys.executable, __file__, what, recipe, out, told], check=True)
    return dict(json.loads(told.read_text(encoding="utf-8")))


class _Stages:
    """A process that makes one stage after the other, when it is asked for the next; it begins when it is first asked.

    ``new``: what is in the folder ``out`` goes first.
    """

    def __init__(self, recipe: Path, out: Path, new: bool) -> None:
        self._command = [sys.executable, __file__, "peak", recipe, out, "new" if new else "on"]
        self._process: subprocess.Popen[str] | None = None
        self._found: dict[str, int] = {}

    def peak(self, name: str) -> int:
        """The peak of a stage, in bytes, for which all before it are made."""
        self._process = self._process or subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        while name not in self._found:
            self._process.stdin.write("next\n")
            self._process.stdin.flush()
            made, _, peak = self._process.stdout.readline().strip().rpartition(" ")
            if not made:
                raise SystemExit(f"{name}: was not made, or was there without its peak; remove the work folder")
            self._found[made] = int(peak)
            print(f"{made}: {self._found[made] / 1e6:,.0f} MB", file=sys.stderr, flush=True)
        return self._found[name]

    def __enter__(self) -> _Stages:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.communicate()


class _Watch:
    """In the place of the log: ends the process behind the first stage that it makes, and writes its name and peak."""

    def __init__(self, told: int, libraries: int) -> None:
        self._told, self._libraries, self._stage = told, libraries, ""

    def tell(self, event: str, **said: Any) -> None:
        """In the place of the log's."""
        if event != "stage" or said["state"] == "kept":
            return
        if said["state"] == "begun" and self._stage:  # what is around the one before is written: it is done
            os._exit(0)
        if said["state"] == "begun":
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            return
        self._stage = said["name"]
        status = Path("/proc/self/status").read_text(encoding="ascii")
        peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        # Code that only the process that forked has touched would be in memory here too.
        peak += max(0, self._libraries - _libraries())
        os.write(self._told, f"{self._stage} {peak}\n".encode())


def _libraries() -> int:
    """Bytes of programs and libraries that this process has in memory."""
    found, counts = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if not line[0].isupper():  # a mapping: its addresses, and the file behind it
            counts = ".so" in line or line.endswith(sys.executable)
        elif counts and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


def _peaks(run: Callable[[], Any]) -> None:
    """For each line that comes in, tell the next stage and the highest resident memory of the process that made it."""
    from mixprec.core import events

    libraries = _libraries()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a run says goes elsewhere
    for _ in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            events.tell = _Watch(writer, libraries).tell
            try:
                run()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as told:
            line = told.read().strip()
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
            raise SystemExit("a stage failed")
        replies.write(f"{line}\n")
        replies.flush()


def _run(what: str, recipe_file: Path, out: Path, how: str) -> None:
    from mixprec.core import environment

    environment.settle()
    from mixprec import pipeline, recipe
    from mixprec.core import publish
    from mixprec.pipeline import memory
    from mixprec.pipeline.checks import checked

    chosen, text = recipe.load(recipe_file), recipe_file.read_text(encoding="utf-8")

    def run() -> None:
        pipeline.Run(chosen, text, "memory", out, None).run()

    if what == "predict":
        predicted = memory.needs(chosen, checked(chosen, None, planned=False))
        Path(how).write_text(json.dumps({"predicted": predicted}), encoding="utf-8")
        return
    if how != "on":
        publish.remove(out)
    checked(chosen, None, planned=False)  # what it imports is there for all
    _peaks(run)


if __name__ == "__main__":
    _run(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
