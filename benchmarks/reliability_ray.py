"""Whether a run whose jobs a Ray cluster does, two at once, leaves the bytes of one on this machine."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reliability import Rows

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "pipeline"))


def measure(work: Path, rows: Rows, quick: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Figures, and the files that differ. Without Ray nothing is measured."""
    if importlib.util.find_spec("ray") is None:
        return {"ray_results_equal": None}, {}

    def run(_: str) -> dict[str, Any]:
        import placed
        import tiny

        from mixprec.core import publish

        publish.remove(work)
        checkpoint = tiny.write_checkpoint(work / "model", steps=200)
        recipe = placed.write(work / "recipe", checkpoint)
        for name, words in (("here", ()), ("ray", ("--on", "ray", "--jobs", "2"))):
            done = placed.run(recipe, work / name, *words, RAY_ADDRESS="local")
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr}")
        here, there = (placed.tree(work / name) for name in ("here", "ray"))
        return {"files": len(here), "other": sorted(key for key in here | there if here.get(key) != there.get(key))}

    (row,) = rows.each(["ray"], run)
    other = row["other"]
    figures = {"ray_results_equal": not other, "ray_files": row["files"]}
    return figures, dict.fromkeys(other, "other bytes")
