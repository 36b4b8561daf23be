"""Peak memory of every stage against what `mixprec explain` says of it, and what hashing costs.

One recipe of SmolLM2-135M goes through all stages, each in a process of its own that ends behind it, so that no stage
is measured with what an earlier one left; the next process goes on, as after a kill. What hashing costs is measured on
a run with one variant that is rounded, in one process: of what is quick hashing is the largest share.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reliability import Rows

_FORMATS = ["w3g64", "w4g64"]
_BUDGET = {"effective_bits": 3.7, "candidates": _FORMATS, "exchange": {"samples": 2, "proposals": 2}}
RECIPE = {
    "model": {"id": "smollm2-135m-instruct"},
    "traces": {"source": "bundled:attribution", "first": 6},
    "importance": {"preset": "paper"},
    "compress": {"method": "rtn", "calibration": {"traces": "bundled:attribution", "samples": 16, "tokens": 256}},
    "sensitivity": {"formats": _FORMATS, "samples": 4},
    "variants": {
        "gptq": {"plan": {"default": "w3g64", "method": "gptq"}},
        "awq": {"plan": {"default": "w3g64", "method": "awq"}},
        "rtn": {"plan": {"default": "w3g64"}},
        "budget": {"plan": {"budget": _BUDGET}},
        "tuned": {"plan": {"default": "w3g64"}, "tune": {"epochs": 1, "validation": 2, "samples": 6}},
    },
    "evaluate": {
        "traces": {"source": "bundled:held_out", "first": 4},
        "max_tokens": 512,
        "benchmarks": [{"name": "folio", "source": "QUESTIONS"}],
        "engine": {"kind": "transformers", "batch": 4},
        "limit": 4,
        "seeds": [0],
        "max_new_tokens": 64,
    },
}
_QUICK = "rtn"


def measure(work: Path, rows: Rows, quick: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Figures; nothing is wrong here that they don't say."""
    work.mkdir(parents=True, exist_ok=True)
    chosen, least = _written(work, quick), _written(work, True)
    how = ", quick" if quick else ""

    def run(_: str) -> dict[str, Any]:
        told = _child("time", least, work / "whole")
        return {"seconds": told["seconds"], "hashing": told["hashing"]}

    def stages(_: str) -> dict[str, Any]:
        peaks: dict[str, int] = {}
        while (told := _child("peak", chosen, work / "run", keep=bool(peaks)))["name"]:
            peaks[told["name"]] = told["peak"]
            print(f"{told['name']}: {told['peak'] / 1e6:,.0f} MB", file=sys.stderr)
        return {"peaks": peaks, "predicted": told["predicted"]}

    (row,) = rows.each([f"peaks{how}"], stages)
    (spent,) = rows.each(["hashing"], run)
    peaks = {name: peak / row["predicted"][name] for name, peak in row["peaks"].items() if name in row["predicted"]}
    figures = {
        "memory_prediction_error": max(abs(ratio - 1) for ratio in peaks.values()),
        "memory_peaks": peaks,
        "memory_measured_mb": {name: round(row["peaks"][name] / 1e6) for name in peaks},
        "overhead": spent["seconds"] / (spent["seconds"] - spent["hashing"]),
    }
    return figures, {}


def _written(work: Path, quick: bool) -> Path:
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


def _child(what: str, recipe: Path, out: Path, keep: bool = False) -> dict[str, Any]:
    """What a process tells that runs the recipe; ``keep``: what is in the folder already."""
    told = out.with_suffix(".json")
    subprocess.run([sys.executable, __file__, what, recipe, out, told, "keep" if keep else "new"], check=True)
    return dict(json.loads(told.read_text(encoding="utf-8")))


class _Watch:
    """In the place of the log: ends the process behind the first stage that it makes, and tells the peak."""

    def __init__(self, told: Path, predicted: dict[str, int]) -> None:
        self._told, self._predicted, self._stage = told, predicted, ""

    def tell(self, event: str, **said: Any) -> None:
        """In the place of the log's."""
        if event != "stage" or said["state"] == "kept":
            return
        if said["state"] == "begun" and self._stage:  # what is around the one before is there: it is done
            os._exit(0)
        if said["state"] == "begun":
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        else:
            self._stage = said["name"]
            self.note(self._stage)

    def note(self, name: str) -> None:
        """Write what is known; a ``name`` of nothing: all stages were there."""
        status = Path("/proc/self/status").read_text(encoding="ascii")
        peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        text = json.dumps({"name": name, "peak": peak, "predicted": self._predicted}, indent=1)
        self._told.write_text(text, encoding="utf-8")

    @property
    def made(self) -> bool:
        return bool(self._stage)


class _Hashing:
    """CPU time of functions that hash; what one calls of another counts once."""

    def __init__(self) -> None:
        self.seconds, self._inside = 0.0, False

    def watch(self, holder: Any, name: str) -> None:
        """Time every call of ``holder.name`` from now on."""
        original: Callable[..., Any] = getattr(holder, name)

        def timed(*given: Any, **named: Any) -> Any:
            if self._inside:
                return original(*given, **named)
            self._inside, start = True, time.thread_time()
            try:
                return original(*given, **named)
            finally:
                self._inside = False
                self.seconds += time.thread_time() - start

        setattr(holder, name, timed)


def _run(what: str, recipe_file: Path, out: Path, told: Path, keep: bool) -> None:
    from mixprec.core import environment

    environment.settle()
    from mixprec import pipeline, recipe
    from mixprec.core import artifacts, events, publish, seals
    from mixprec.pipeline import memory
    from mixprec.pipeline.checks import checked

    if not keep:
        publish.remove(out)
    chosen = recipe.load(recipe_file)
    run = pipeline.Run(chosen, recipe_file.read_text(encoding="utf-8"), "memory", out, None)
    if what == "peak":
        watch = _Watch(told, memory.needs(chosen, checked(chosen, None, planned=False)))
        events.tell = watch.tell
        run.run()
        if not watch.made:
            watch.note("")
        return
    hashing = _Hashing()
    for holder, name in ((artifacts, "sha256_file"), (seals, "_digest"), (seals, "sealed"), (seals, "opened")):
        hashing.watch(holder, name)
    start = time.process_time()
    run.run()
    spent = {"seconds": time.process_time() - start, "hashing": hashing.seconds}
    told.write_text(json.dumps(spent), encoding="utf-8")


if __name__ == "__main__":
    _run(sys.argv[1], *map(Path, sys.argv[2:5]), sys.argv[5] == "keep")
