"""Stages that are done once: each has a fingerprint of its inputs and is skipped where its outputs are there."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mixprec.core import artifacts, events, processes, publish
from mixprec.core.errors import UserError
from mixprec.core.progress import console


class Stages:
    """The stages of one run folder; what is done lies in ``.stages/<name>.json``."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._all_there = False

    @contextmanager
    def all_there(self) -> Iterator[None]:
        """Inside nothing is made: a stage that isn't done is an error."""
        self._all_there = True
        try:
            yield
        finally:
            self._all_there = False

    def do(self, name: str, rules: int, inputs: Any, outputs: Sequence[Path], make: Callable[[], object]) -> str:
        """Call ``make`` unless ``outputs`` were made by these ``rules`` from equal ``inputs``; returns the fingerprint.

        ``rules``: RULES of the package that does the work. ``inputs`` is JSON-serialisable and holds the fingerprints
        of the stages that come before. A kill between ``make`` and the marker repeats the stage, which writes the same
        bytes again. Raises UserError where ``make`` would be called though all has to be there.
        """
        marker = self.run / ".stages" / f"{name.replace('/', '-')}.json"
        stamp = artifacts.fingerprint(artifacts.SCHEMA_VERSION, name, rules, inputs)
        if not self._is_done(marker, stamp, outputs):
            if not processes.is_main():
                raise UserError(
                    f"{self.run}: the main process's stage {name} is not there; all machines need one folder for the "
                    "run: give --out on storage that they share"
                )
            if self._all_there:
                raise UserError(
                    f"{self.run}: stage {name} is not there as {platform.node()} would make it: all machines need one "
                    "folder for the run (--out on storage that they share), the same model and the same data"
                )
            publish.remove(marker)
            with events.stage(name):
                make()
            artifacts.write_json(marker, {"fingerprint": stamp, "outputs": self._digests(outputs)})
        else:
            events.tell("stage", name=name, state="kept")
        return stamp

    def _is_done(self, marker: Path, stamp: str, outputs: Sequence[Path]) -> bool:
        """Whether the outputs are what equal inputs made, byte for byte; what was changed since is said."""
        if not marker.is_file() or not all(path.exists() for path in outputs):
            return False
        try:
            done = artifacts.read_object(marker)
        except UserError as problem:
            console.print(f"{problem}; its stage is made again", soft_wrap=True)
            return False
        if done.get("fingerprint") != stamp:
            return False
        known, found = done.get("outputs"), self._digests(outputs)
        if known == found:
            return True
        before = known if isinstance(known, dict) else {}
        changed = sorted(name for name in before.keys() | found.keys() if before.get(name) != found.get(name))
        console.print(
            f"{self.run / changed[0]}: is not what was written (edited, damaged, added or removed"
            f"{f'; {len(changed) - 1} more files too' if len(changed) > 1 else ''}); made again",
            soft_wrap=True,
        )
        return False

    def _digests(self, outputs: Sequence[Path]) -> dict[str, str]:
        """Name in the run's folder -> SHA-256 of every file.

        A checkpoint's model card doesn't count: results are added to it later.
        """
        files = [file for path in outputs for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
        return {
            file.relative_to(self.run).as_posix(): artifacts.sha256_file(file)
            for file in files
            if file.is_file() and file.name != "README.md"
        }
