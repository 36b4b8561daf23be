"""Whether a folder holds what mixprec wrote there: a checkpoint by its card, a run by the record of its stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mixprec.checkpoint import integrity
from mixprec.core import artifacts, events, publish, seals
from mixprec.core.errors import UserError, listed
from mixprec.models.modelfiles import CARD

_MARKERS = ".stages"


class Verified(NamedTuple):
    """``files``: how many are as they were written; ``unknown``: those that nothing is written down of."""

    files: int
    unknown: list[str]


def verify(folder: Path) -> Verified:
    """Compare every file with what was written down of it.

    Raises UserError naming all files that are missing, changed or broken, and for a folder that is neither.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a checkpoint or a run")
    if (folder / CARD).is_file():
        if not integrity.verify(folder):
            raise UserError(f"{folder / CARD}: has no checksums; only checkpoints that mixprec wrote can be verified")
        known = {*integrity.digests(folder), CARD}
        return Verified(len(known), _others(folder, known))
    if not (folder / _MARKERS).is_dir():
        raise UserError(f"{folder}: neither {CARD} nor {_MARKERS} is there; give a checkpoint or a run of mixprec")
    problems: list[str] = []
    known = _recorded(folder, problems) | _sealed(folder, problems)
    if problems:
        raise UserError(listed(str(folder), problems))
    return Verified(len(known), _others(folder, known))


def _recorded(run: Path, problems: list[str]) -> set[str]:
    """Names of the stages' outputs, all of which are looked at."""
    known: set[str] = set()
    for marker in sorted((run / _MARKERS).glob("*.json")):
        found = _tried(lambda marker=marker: artifacts.read_object(marker), problems)  # type: ignore[misc]
        outputs = (found or {}).get("outputs")
        known.add(marker.relative_to(run).as_posix())
        for name, digest in outputs.items() if isinstance(outputs, dict) else ():
            known.add(name)
            path = _tried(lambda name=name: publish.within(run, name), problems)  # type: ignore[misc]
            if path is None:
                continue
            if not path.is_file():
                problems.append(f"{name}: missing; run the recipe again")
            elif artifacts.sha256_file(path) != digest:
                problems.append(f"{name}: was edited or damaged since it was written; run the recipe again")
    return known


def _sealed(run: Path, problems: list[str]) -> set[str]:
    """Names of other files that carry a seal."""
    readers: dict[str, Callable[[Path], Any]] = {
        ".json": artifacts.read_json, ".jsonl": artifacts.read_jsonl, ".safetensors": seals.check_tensors,
    }  # fmt: skip
    known = set()
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if not path.is_file() or name == events.NAME or path.suffix not in readers:
            continue
        read = readers[path.suffix]
        _tried(lambda path=path, read=read: read(path), problems)  # type: ignore[misc]
        if path.suffix == ".safetensors" or seals.KEY in artifacts.read_text(path):
            known.add(name)
    recipe, summary = run / "recipe.yaml", run / "summary.json"
    if recipe.is_file() and summary.is_file() and not problems:
        made_from = artifacts.read_object(summary).get("provenance", {}).get("recipe")
        if made_from != artifacts.fingerprint(artifacts.read_text(recipe)):
            problems.append("recipe.yaml: is not the recipe that summary.json was made from")
        known.add("recipe.yaml")
    return known


def _tried(read: Callable[[], Any], problems: list[str]) -> Any:
    try:
        return read()
    except UserError as problem:
        problems.append(str(problem))
        return None


def _others(folder: Path, known: set[str]) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    return [name for name in names if name not in known and name not in (events.NAME, ".lock")]
