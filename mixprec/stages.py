"""Stages that are done once: each has a fingerprint of its inputs and is skipped where its outputs are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mixprec
from mixprec import artifacts, processes
from mixprec.errors import UserError


class Stages:
    """The stages of one run folder; what is done lies in ``.stages/<name>.json``."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def do(self, name: str, inputs: Any, outputs: Sequence[Path], make: Callable[[], object]) -> str:
        """Call ``make`` unless ``outputs`` were made from equal ``inputs`` before; returns the stage's fingerprint.

        ``inputs`` is JSON-serialisable and holds the fingerprints of the stages that come before. A kill between
        ``make`` and the marker repeats the stage, which writes the same bytes again.
        """
        marker = self.run / ".stages" / f"{name.replace('/', '-')}.json"
        stamp = artifacts.fingerprint(mixprec.__version__, artifacts.SCHEMA_VERSION, name, inputs)
        if not self._is_done(marker, stamp, outputs):
            if not processes.is_main():
                raise UserError(
                    f"{self.run}: the main process's stage {name} is not there; all machines need one folder for the "
                    "run: give --out on storage that they share"
                )
            artifacts.remove(marker)
            make()
            sizes = {str(path.relative_to(self.run)): _size(path) for path in outputs}
            artifacts.write_json(marker, {"fingerprint": stamp, "outputs": sizes})
        return stamp

    def _is_done(self, marker: Path, stamp: str, outputs: Sequence[Path]) -> bool:
        if not marker.is_file() or not all(path.exists() for path in outputs):
            return False
        done = artifacts.read_json(marker)
        sizes = {str(path.relative_to(self.run)): _size(path) for path in outputs}
        return bool(done == {"fingerprint": stamp, "outputs": sizes})


def _size(path: Path) -> int:
    """Bytes of a file or of all files in a folder: an output that was cut or lost a file is made again.

    A checkpoint's model card doesn't count: results are added to it later.
    """
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    files = [file for file in files if file.name != "README.md"]
    return sum(file.stat().st_size for file in files)
