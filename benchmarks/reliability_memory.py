"""Peak memory of every stage against what `mixprec explain` says of it, and what hashing costs.

One recipe of SmolLM2-135M goes through all stages, in a process of its own; a thread looks at its memory, and the time
that is spent on hashing is taken.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
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
    "traces": {"source": "bundled:attribution", "first": 4},
    "importance": {"preset": "paper"},
    "compress": {"method": "gptq", "calibration": {"traces": "bundled:attribution", "samples": 16, "tokens": 256}},
    "sensitivity": {"formats": _FORMATS, "samples": 4},
    "variants": {
        "uniform": {"plan": {"default": "w3g64"}},
        "budget": {"plan": {"budget": _BUDGET}},
        "tuned": {"plan": {"default": "w3g64"}, "tune": {"epochs": 1, "validation": 2, "samples": 6}},
    },
    "evaluate": {"traces": {"source": "bundled:held_out"}, "max_tokens": 512},
}


def measure(work: Path, rows: Rows, quick: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Figures; nothing is wrong here that they don't say."""

    def run(_: str) -> dict[str, Any]:
        work.mkdir(parents=True, exist_ok=True)
        recipe, told = work / "memory.yaml", work / "memory.json"
        chosen = {**RECIPE, "variants": {"uniform": RECIPE["variants"]["uniform"]}} if quick else RECIPE
        recipe.write_text(json.dumps(chosen), encoding="utf-8")
        subprocess.run([sys.executable, __file__, recipe, work / "run", told], check=True)
        return dict(json.loads(told.read_text(encoding="utf-8")))

    (row,) = rows.each([f"memory{', quick' if quick else ''}"], run)
    peaks = {name: peak / row["predicted"][name] for name, peak in row["peaks"].items() if name in row["predicted"]}
    figures = {
        "memory_prediction_error": max(abs(ratio - 1) for ratio in peaks.values()),
        "memory_peaks": peaks,
        "overhead": row["seconds"] / (row["seconds"] - row["hashing"]),
    }
    return figures, {}


class _Watch:
    """Peak memory by stage, of this process."""

    def __init__(self) -> None:
        import psutil

        self.peaks: dict[str, int] = {}
        self._process, self._stage = psutil.Process(), ""
        threading.Thread(target=self._look, daemon=True).start()

    def tell(self, event: str, **said: Any) -> None:
        """In the place of the log's."""
        if event == "stage":
            self._stage = said["name"] if said["state"] == "begun" else ""

    def _look(self) -> None:
        while True:
            stage, now = self._stage, self._process.memory_info().rss
            if stage:
                self.peaks[stage] = max(self.peaks.get(stage, 0), now)
            time.sleep(0.005)


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


def _predicted(chosen: Any, found: Any) -> dict[str, int]:
    """Stage of the record -> bytes; of several stages of the estimate that are made within it the largest."""
    from mixprec.pipeline import costs

    known: dict[str, int] = {}
    for each in costs.stages(chosen, found):
        kind, _, variant = each.name.partition(" ")
        names = {"importance": ["attribute"], "candidates": ["sensitivity"], "tune": [f"compress/{variant}"]}.get(kind)
        if kind == "evaluation":
            names = ["reference", *(f"evaluate/{name}" for name in chosen.all_variants)]
        for name in names or [f"{kind}/{variant}" if variant else kind]:
            known[name] = max(known.get(name, 0), each.memory)
    return known


def _run(recipe_file: Path, out: Path, told: Path) -> None:
    from mixprec.core import environment

    environment.settle()
    from mixprec import pipeline, recipe
    from mixprec.core import artifacts, events, publish, seals
    from mixprec.pipeline.checks import checked

    publish.remove(out)
    chosen = recipe.load(recipe_file)
    predicted = _predicted(chosen, checked(chosen, None, planned=False))
    watch, hashing = _Watch(), _Hashing()
    events.tell = watch.tell
    for holder, name in ((artifacts, "sha256_file"), (seals, "_digest"), (seals, "sealed"), (seals, "opened")):
        hashing.watch(holder, name)
    start = time.process_time()
    pipeline.Run(chosen, recipe_file.read_text(encoding="utf-8"), "memory", out, None).run()
    spent = {"seconds": time.process_time() - start, "hashing": hashing.seconds}
    told.write_text(json.dumps({**spent, "peaks": watch.peaks, "predicted": predicted}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    _run(*map(Path, sys.argv[1:4]))
