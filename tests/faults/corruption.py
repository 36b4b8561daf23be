"""Artifacts of every kind that are damaged, cut, foreign or of another version: what is read of them is never another
thing in silence."""

from __future__ import annotations

import io
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Literal, NamedTuple

from faults.stages import Stage, stages
from mixprec import cli
from mixprec.checkpoint.opening import open_checkpoint
from mixprec.core import artifacts, progress, seals
from mixprec.core.errors import UserError
from mixprec.core.stages import Stages
from mixprec.evaluate.generations import parse
from mixprec.importance import artifact
from mixprec.models.decoder import Decoder
from mixprec.models.model import Model
from mixprec.plan import sensitivity
from mixprec.plan.schema import load_plan
from mixprec.report import shapes
from mixprec.results.checkpoint import Checkpoint
from mixprec.traces import spans, store

Kind = Literal["flip", "cut", "future", "foreign"]
#: How often each kind comes for one of another.
_SHARES: dict[Kind, int] = {"flip": 12, "cut": 5, "foreign": 4, "future": 1}
#: What stands where an artifact was expected.
_FOREIGN = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b"hello",
    b"\x00" * 64,
    b'{"a": 1}\n',
    b"\x89PNG\r\n\x1a\n",
    b"GGUF",
    b"[" * 999,
)


#: Refused with its name; said and used; read as what it was; read up to where a kill could have left it.
GOOD = ("refused", "told", "same", "beginning")


class Artifact(NamedTuple):
    """``read`` gives what mixprec makes of the file, in values that compare; ``grows``: a beginning of it is what a
    kill leaves, and the same command goes on from there."""

    name: str
    path: Path
    read: Callable[[], Any]
    grows: bool = False


class Case(NamedTuple):
    name: str
    artifact: Artifact
    content: bytes


#: Stages whose artifacts are damaged.
STAGES = ("trace", "annotate", "attribute", "sensitivity", "compress", "gguf", "bench", "tune", "run")


def gallery(home: Path, *names: str) -> list[Artifact]:
    """One artifact of each kind that the stages of these ``names`` (default: STAGES) make, below ``home``."""
    out, chosen = home / "gallery", names or STAGES
    with stages(home / "made", *chosen) as listed:
        for stage in listed.values():
            if not (out / stage.name).is_dir():
                _made(stage, out / stage.name)
    decoder = Model(home / "made" / "llama").decoder
    return [each for name in chosen for each in _LISTED[name](out / name, decoder)]


def _made(stage: Stage, out: Path) -> None:
    told = io.StringIO()
    sys.argv = ["mixprec", *stage.words(out)]
    with redirect_stdout(told), redirect_stderr(told):
        try:
            cli.main()
        except SystemExit as end:
            assert not end.code, told.getvalue()


def _of(path: Path, read: Callable[[Path], Any], grows: bool = False) -> Artifact:
    return Artifact("/".join(path.parts[-3:]), path, lambda: read(path), grows)


def _attributed(out: Path, _: Decoder) -> list[Artifact]:
    folder = out / "importance"
    return [_of(folder / "importance.json", artifact.load), _stamped(next((folder / "traces").iterdir()))]


def _scored(out: Path, decoder: Decoder) -> list[Artifact]:
    table = next(out.rglob("fisher*.json"))
    candidates = next(out.rglob("candidates/*.safetensors"))
    return [_of(table, lambda path: sensitivity.load(path, decoder)), _stamped(candidates)]


def _benched(out: Path, _: Decoder) -> list[Artifact]:
    rows = next(out.rglob("*.jsonl"))
    return [_of(out / "bench" / "benchmarks.json", shapes.read_benchmarks), _of(rows, _generations, grows=True)]


def _run(out: Path, decoder: Decoder) -> list[Artifact]:
    run = out / "run"
    uniform, marks = run / "variants" / "uniform", run / ".stages"
    return [
        _of(run / "summary.json", shapes.read_summary),
        _of(uniform / "result.json", shapes.read_fidelity),
        _of(uniform / "quality.json", lambda _: _done(run, marks / "compress-uniform.json")),
        _of(uniform / "plan.json", lambda path: load_plan(path, decoder)),
        _of(run / "evaluation" / "reference.safetensors", lambda _: _done(run, marks / "reference.json")),
        _of(run / "importance" / "steering.safetensors", lambda _: _done(run, marks / "attribute.json")),
        _of(marks / "attribute.json", lambda path: _done(run, path)),
    ]


def _checkpoint(out: Path, _: Decoder) -> list[Artifact]:
    """All files but the card for people, which gets results later and is not read back."""
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    return [_of(path, _opened) for path in sorted(folder.iterdir()) if path.name != "README.md"]


_LISTED: dict[str, Callable[[Path, Decoder], list[Artifact]]] = {
    "trace": lambda out, _: [_of(out / "traces.jsonl", lambda path: store.load(str(path)), grows=True)],
    "annotate": lambda out, _: [_of(out / "spans.jsonl", spans.load_spans)],
    "attribute": _attributed,
    "sensitivity": _scored,
    "compress": _checkpoint,
    "gguf": _checkpoint,
    "bench": _benched,
    "tune": _checkpoint,
    "run": _run,
}


def _stamped(path: Path) -> Artifact:
    """Tensors that a killed run goes on from; others are made again."""
    stamp = artifacts.load_tensors(path)[1]["stamp"]

    def read(path: Path) -> Any:
        if not artifacts.is_made(path, stamp):
            raise UserError(f"{path}: made again")
        return {name: (str(tensor.dtype), tensor.tolist()) for name, tensor in artifacts.load_tensors(path)[0].items()}

    return _of(path, read)


def _generations(path: Path) -> Any:
    return [parse(row, f"{path}:{number}") for number, row in enumerate(artifacts.read_jsonl(path), 1)]


def _done(run: Path, marker: Path) -> Any:
    """A stage's marker. Raises UserError where it isn't taken for done: then the stage is made again."""
    stages = Stages(run)
    known = artifacts.read_object(marker)
    outputs = [run / name for name in known["outputs"]] if isinstance(known.get("outputs"), dict) else []
    if not outputs or not stages._is_done(marker, str(known.get("fingerprint")), outputs):
        raise UserError(f"{marker}: made again")
    return known


def _opened(path: Path) -> Any:
    found = Checkpoint.load(path.parent)
    opened = open_checkpoint(path.parent)
    card = artifacts.read_object(path.parent / "mixprec.json")
    return str(found.folder), card, {address: str(layout) for address, layout in opened.layouts.items()}


def cases(listed: list[Artifact], count: int, seed: int = 0) -> Iterator[Case]:
    """``count`` damages, spread over all artifacts and kinds."""
    draw = random.Random(seed)
    kinds = [kind for kind, share in _SHARES.items() for _ in range(share)]
    wholes = {each.name: each.path.read_bytes() for each in listed}
    for number in range(count):
        each, kind = listed[number % len(listed)], kinds[number // len(listed) % len(kinds)]
        content = _damaged(each, kind, wholes, draw)
        if content is not None:
            yield Case(f"{number}: {each.name}, {kind}", each, content)


def _damaged(each: Artifact, kind: Kind, wholes: dict[str, bytes], draw: random.Random) -> bytes | None:
    whole = wholes[each.name]
    if kind == "future":
        return _later(whole)
    if kind == "cut":
        return whole[: draw.randrange(len(whole))]
    if kind == "foreign":
        same_ending = [wholes[name] for name in wholes if Path(name).name != Path(each.name).name]
        return draw.choice([*_FOREIGN, draw.randbytes(200), *same_ending])
    content = bytearray(whole)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(content)


def _later(whole: bytes) -> bytes | None:
    """The file as a later mixprec would write it; None for what has no version of its own."""
    mark = b'"mixprec_schema":"1"'
    if mark in whole:
        return whole.replace(mark, b'"mixprec_schema":"2"')
    try:
        rows = [json.loads(line) for line in whole.decode().splitlines()] if b"}\n{" in whole else [json.loads(whole)]
    except ValueError:
        return None
    if not all(isinstance(row, dict) and seals.SCHEMA in row for row in rows):
        return None
    for row in rows:
        del row[seals.KEY]
        row[seals.SCHEMA] = 2
        row[seals.KEY] = seals._of(row)
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


class Gauge:
    """Tries cases on artifacts, whose contents come back."""

    def __init__(self, listed: list[Artifact]) -> None:
        self._wholes = {each.name: (each.path.read_bytes(), each.read()) for each in listed}
        self._time = 10**18

    def outcome(self, case: Case) -> str:
        """What became of a case: one of GOOD, or what is wrong."""
        each = case.artifact
        whole, expected = self._wholes[each.name]
        told, quiet = io.StringIO(), progress.console.quiet
        try:
            self._write(each.path, case.content)
            progress.console.quiet = False  # notices go to standard error, as on the command line
            with redirect_stderr(told):
                found = each.read()
        except UserError as problem:
            text = "".join(f"{problem}{told.getvalue()}".split())
            return "refused" if str(each.path) in text or str(each.path.parent) in text else f"no name: {problem}"
        except Exception as problem:
            return f"{type(problem).__name__}: {problem}"
        finally:
            progress.console.quiet = quiet
            self._write(each.path, whole)
        if found == expected:
            return "same"
        if each.path.name in "".join(told.getvalue().split()):
            return "told"
        return "beginning" if each.grows and found == expected[: len(found)] else "read as something else in silence"

    def _write(self, path: Path, content: bytes) -> None:
        """Files that are written one after the other have other times, as those of people have."""
        path.write_bytes(content)
        self._time += 1_000_000
        os.utime(path, ns=(self._time, self._time))
