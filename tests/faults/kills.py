"""A stage that is hit by a fault and started again ends with the bytes of one that was not."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from faults.smithy import Fault, Outcome, Smithy
from faults.stages import Stage
from mixprec.core import events

#: A file that grows line by line is a beginning of itself while the work goes on.
_GROWING = ".jsonl"
#: Written anew with more in it while a run goes on: the model card gets its results at the end.
_REWRITTEN = ("README.md",)

Hit = Literal["kill", "full", "moment", "term", "int"]
_SIGNALS: Mapping[Hit, signal.Signals] = {
    "moment": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT,
}  # fmt: skip
#: Exit codes that are right.
_CODES: Mapping[Hit, tuple[int, ...]] = {
    "kill": (-signal.SIGKILL,), "full": (2, 0), "moment": (-signal.SIGKILL, 0), "term": (130, 0), "int": (130, 0),
}  # fmt: skip


class Case(NamedTuple):
    """``hit``: a kill or a full disk at call number ``at``; or a signal (a kill, SIGTERM, SIGINT) at that share of the
    time that the stage takes."""

    stage: str
    hit: Hit
    at: float

    @property
    def name(self) -> str:
        return f"{self.stage}, {self.hit} at {self.at:g}"


class Whole(NamedTuple):
    """What a stage leaves that nothing disturbs, the ``calls`` that it makes for it, and its ``seconds``."""

    files: dict[str, bytes]
    calls: list[str]
    seconds: float


class Bench(NamedTuple):
    """Where stages are run: always in the same folder, as some paths go into what they write."""

    smithy: Smithy
    root: Path

    def run(self, stage: Stage, fault: Fault = "none", at: int = 0, **more: float) -> Outcome:
        """A stage in what is there."""
        return self.smithy.run(stage.words(self.root), self.root, fault, at, **more)  # type: ignore[arg-type]

    def clear(self, stage: Stage) -> None:
        """An empty folder, or what the stage begins with."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        if stage.start is not None:
            shutil.copytree(stage.start, self.root / stage.start.name)

    @property
    def files(self) -> dict[str, bytes]:
        """Path -> content of all that is there, empty folders too, but for the log, which has times in it."""
        found = sorted(self.root.rglob("*"))
        empty = {f"{path.relative_to(self.root)}/": b"" for path in found if path.is_dir() and not any(path.iterdir())}
        files = {str(path.relative_to(self.root)): path.read_bytes() for path in found if path.is_file()}
        return empty | {name: content for name, content in files.items() if Path(name).name != events.NAME}

    def whole(self, stage: Stage) -> Whole:
        """The stage without a fault, twice. Raises AssertionError where it fails, or writes other bytes again."""
        found = []
        for _ in range(2):  # the second time everything is imported
            self.clear(stage)
            ended = self.run(stage)
            assert ended.code == 0, f"{stage.name}: exit code {ended.code}: {ended.told}"
            found.append((self.files, ended))
        (first, _), (files, ended) = found
        assert first.keys() == files.keys(), f"{stage.name}: two runs leave other files"
        changed = [name for name in files if files[name] != first[name]]
        assert not changed, f"{stage.name}: two runs leave other bytes in {changed}"
        return Whole(files, ended.calls, ended.seconds)

    def problem(self, case: Case, stage: Stage, whole: Whole) -> str | None:
        """What is wrong with what becomes of a stage that is hit; None where nothing is."""
        self.clear(stage)
        hit = self._hit(case, stage, whole)
        if hit.code not in _CODES[case.hit]:
            return f"exit code {hit.code}: {hit.told[-2000:]}"
        if "Traceback" in hit.told:
            return f"a traceback: {hit.told[-2000:]}"
        if hit.code == 130 and "the same command continues" not in hit.told:
            return f"says nothing of going on: {hit.told[-500:]}"
        if case.hit == "full" and hit.code == 2 and "disk is full" not in hit.told:
            return f"does not say that the disk is full: {hit.told[-500:]}"
        half = [name for name, content in self.files.items() if not _in_order(name, content, whole.files, stage)]
        if half:
            return f"half-done under a final name: {half}"
        again = self.run(stage)
        if again.code != 0:
            return f"started again, exit code {again.code}: {again.told[-2000:]}"
        files = self.files
        if files != whole.files:
            names = sorted(files.keys() ^ whole.files.keys()) or [n for n in files if files[n] != whole.files[n]]
            return f"started again, it leaves others of {names}"
        return None

    def _hit(self, case: Case, stage: Stage, whole: Whole) -> Outcome:
        if case.hit in ("kill", "full"):
            return self.run(stage, case.hit, int(case.at))  # type: ignore[arg-type]
        return self.run(stage, send=_SIGNALS[case.hit], after=case.at * whole.seconds)


def _in_order(name: str, content: bytes, whole: Mapping[str, bytes], stage: Stage) -> bool:
    """Whether a file that is there after a fault may be there: what is not finished has other names."""
    final = whole.get(name)
    if final is None or content == final or Path(name).name in _REWRITTEN:
        return True
    if stage.start is not None and (stage.start.parent / name).is_file():
        return content == (stage.start.parent / name).read_bytes()
    return name.endswith(_GROWING) and final.startswith(content)


def spread(wholes: Mapping[str, Whole], hit: Hit, count: int, seed: int = 0) -> Iterator[Case]:
    """``count`` cases over all stages: calls at even distances, each with the same chance, or moments at random."""
    draw = random.Random(f"{hit} {seed}")
    if hit not in ("kill", "full"):
        names = list(wholes)
        for number in range(count):
            yield Case(names[number % len(names)], hit, round(draw.random(), 3))
        return
    calls = [(name, number) for name, whole in wholes.items() for number in range(1, len(whole.calls) + 1)]
    step = max(len(calls) / count, 1)
    start = draw.random() * step
    places = sorted({int(start + step * number) for number in range(count)})
    yield from (Case(*calls[place][:1], hit, calls[place][1]) for place in places if place < len(calls))
