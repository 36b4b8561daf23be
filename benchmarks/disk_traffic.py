"""What ``explain`` says that a recipe reads and writes, against what the kernel counts in its run, on SmolLM2-135M.

python benchmarks/disk_traffic.py --json disk_traffic.json [--work FOLDER] [--only NAME]

While a recipe runs, its files and the model's are written out and dropped from the system's cache every two seconds, so
that each pass over a file comes from the disk, as with models larger than memory. Counted is the run's process, by
getrusage: 512-byte blocks that came from the disk and that went there. A file that is made and removed between two of
these moments is counted by nobody.

Keys, for each recipe and for ``read`` and ``written``: ``estimated`` and ``measured`` bytes, ``ratio`` of the two
(estimated / measured).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mixprec.core import environment

environment.settle()  # before torch is imported

from mixprec import pipeline, recipe
from mixprec.models.model import Model
from mixprec.pipeline import costs

SECONDS = 2.0
BLOCK = 512  # of getrusage
MODEL = "smollm2-135m-instruct"
COMPRESSED = {"default": "w4g64", "method": "rtn"}
RECIPES: dict[str, dict[str, Any]] = {
    "gguf": {
        "checkpoint": {"format": "gguf", "embedding": "q8_0"},
        "variants": {
            name: {"plan": {"default": name, "method": "ggml"}} for name in ("q8_0",)
        },
    },
    "gguf, half of the layers kept": {
        "checkpoint": {"format": "gguf"},
        "variants": {
            "half": {
                "plan": {
                    "default": "q4_0",
                    "method": "ggml",
                    "rules": [{"match": ["model.layers.1?.*", "model.layers.?.*"], "format": "keep"}],
                }
            }
        },
    },
    "packed, scored and evaluated": {
        "compress": {"method": "rtn", "calibration": {"traces": "bundled:attribution", "samples": 2, "tokens": 128}},
        "sensitivity": {"scorer": "weight_error", "formats": ["w3g64", "w4g64"], "samples": 2},
        "checkpoint": {"format": "compressed-tensors"},
        "variants": {"w4": {"plan": COMPRESSED}},
        "evaluate": {"traces": {"source": "bundled:held_out"}, "max_tokens": 64},
    },
}  # fmt: skip


def measured(path: Path, out: Path, more: Iterable[Path]) -> tuple[int, int]:
    """Bytes that a run of the recipe ``path`` into ``out`` reads from the disk and writes there."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    drop(more)
    running = subprocess.Popen([sys.executable, "-m", "mixprec", "run", str(path), "--out", str(out)])
    ended = threading.Event()

    def keep_dropping() -> None:
        while not ended.wait(SECONDS):
            drop([*more, out])

    dropping = threading.Thread(target=keep_dropping)
    dropping.start()
    code = running.wait()
    ended.set()
    dropping.join()
    if code:
        raise SystemExit(f"{path}: the run failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_inblock - before.ru_inblock) * BLOCK, (after.ru_oublock - before.ru_oublock) * BLOCK


def drop(folders: Iterable[Path]) -> None:
    """Write out all files and take them from the system's cache."""
    for folder in folders:
        for path in [Path(where, name) for where, _, names in os.walk(folder) for name in names]:
            try:
                handle = os.open(path, os.O_RDONLY)
            except OSError:  # gone
                continue
            try:
                os.fdatasync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            except OSError:
                pass
            finally:
                os.close(handle)


def compared(name: str, work: Path) -> dict[str, Any]:
    """One recipe's row."""
    path, folder = work / "recipe.yaml", Model(MODEL).folder
    path.write_text(json.dumps({"title": name, "model": {"id": MODEL}, **RECIPES[name]}))
    chosen = recipe.load(path)
    found = pipeline.checked(chosen)
    found.require(str(path))
    whole = costs.total(costs.stages(chosen, found))
    with tempfile.TemporaryDirectory(dir=work) as out:
        taken = measured(path, Path(out) / "run", [folder])
    return {
        key: {"estimated": ours, "measured": theirs, "ratio": ours / max(theirs, 1)}
        for key, ours, theirs in zip(("read", "written"), whole.traffic, taken, strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=RECIPES)
    parser.add_argument("--work", type=Path, help="where runs lie; a disk, not memory. Default: here")
    options = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory(dir=options.work or Path.cwd()) as scratch:
        for name in options.only or RECIPES:
            rows[name] = compared(name, Path(scratch))
            for key, each in rows[name].items():
                said, counted = each["estimated"] / 1e6, each["measured"] / 1e6
                print(f"{name}: {key}: {said:.0f} MB said, {counted:.0f} MB counted, {each['ratio']:.2f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
