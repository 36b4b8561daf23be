"""What hashing costs: a run with one variant that is rounded, as of what is quick hashing is the largest share."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reliability import Rows


def measure(work: Path, rows: Rows, quick: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Figures; nothing is wrong here that they don't say. It is quick as it is."""
    from reliability_memory import written

    work.mkdir(parents=True, exist_ok=True)

    def run(_: str) -> dict[str, Any]:
        told = work / "told.json"
        subprocess.run([sys.executable, __file__, written(work, True), work / "run", told], check=True)
        return dict(json.loads(told.read_text(encoding="utf-8")))

    (spent,) = rows.each(["hashing"], run, needed=True)
    figures = {"overhead": spent["seconds"] / (spent["seconds"] - spent["hashing"])}
    return figures, {}


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


def _run(recipe_file: Path, out: Path, told: Path) -> None:
    """One run, its CPU time and how much of it went into hashing."""
    from mixprec.core import environment

    environment.settle()
    from mixprec import pipeline, recipe
    from mixprec.core import artifacts, publish, seals

    publish.remove(out)
    hashing = _Hashing()
    for holder, name in ((artifacts, "sha256_file"), (seals, "_digest"), (seals, "sealed"), (seals, "opened")):
        hashing.watch(holder, name)
    start = time.process_time()
    pipeline.Run(recipe.load(recipe_file), recipe_file.read_text(encoding="utf-8"), "hashing", out, None).run()
    spent = {"seconds": time.process_time() - start, "hashing": hashing.seconds}
    told.write_text(json.dumps(spent), encoding="utf-8")


if __name__ == "__main__":
    _run(*map(Path, sys.argv[1:]))
