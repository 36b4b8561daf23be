"""What it costs to compare a finished run with what was written: ``python benchmarks/hashing.py runs/quickstart``.

Every stage hashes its outputs when it has made them, and again when a later run skips it. Keys of ``--json``: ``files``
and ``bytes`` of all stages' outputs, ``cpu_seconds`` to hash them once, ``mb_per_second``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from mixprec.core import artifacts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    markers = sorted((chosen.run / ".stages").glob("*.json"))
    files = {chosen.run / name for marker in markers for name in artifacts.read_object(marker)["outputs"]}
    size = sum(file.stat().st_size for file in files)
    start = time.process_time()
    for file in sorted(files):
        artifacts.sha256_file(file)
    spent = time.process_time() - start
    found = {"files": len(files), "bytes": size, "cpu_seconds": spent, "mb_per_second": size / 1e6 / spent}
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"{len(files)} files, {size / 1e6:,.0f} MB: {spent:.2f} CPU seconds, {found['mb_per_second']:,.0f} MB/s")


if __name__ == "__main__":
    main()
