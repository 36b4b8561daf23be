"""A run made once more from what it says of itself, and compared with what it left."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mixprec.core import artifacts, events
from mixprec.core.errors import UserError
from mixprec.core.version import VERSION
from mixprec.pipeline.run import Run
from mixprec.pipeline.written import recipe_in
from mixprec.report.shapes import read_summary

#: Files with what is not of the run itself: times, who is at work.
_PASSING = (events.NAME, ".lock")


class Reproduced(NamedTuple):
    """``same``: files with equal bytes; ``other``, ``missing``, ``added``: names of the others.

    ``unlike``: what the run was made with that is another here -> (then, now).
    """

    same: int
    other: list[str]
    missing: list[str]
    added: list[str]
    unlike: dict[str, tuple[str, str]]

    @property
    def equal(self) -> bool:
        """Whether every file is there with the same bytes."""
        return not (self.other or self.missing or self.added)


def reproduce(run: Path, out: Path, data: Path | None = None) -> Reproduced:
    """Run the recipe of the finished ``run`` once more, in ``out``, and compare all files.

    Raises UserError where the run is unfinished, its recipe was edited or isn't valid here, and as a run does.
    """
    summary = read_summary(run / "summary.json")
    text, made = artifacts.read_text(run / "recipe.yaml"), summary.get("provenance") or {}
    if made.get("recipe") != artifacts.fingerprint(text):
        raise UserError(f"{run / 'recipe.yaml'}: is not the recipe that summary.json was made from; run it with --out")
    if out.resolve() == run.resolve():
        raise UserError(f"{out}: is the run itself; give another folder with --out")
    chosen = recipe_in(text, run / "recipe.yaml")
    again = Run(chosen, text, str(summary["recipe"]), out, data)
    again.check(str(run / "recipe.yaml"))
    model = again.model.identity
    again.run()
    unlike = _unlike(made)
    if made.get("model") != model:
        unlike["model"] = (str(made.get("model")), model)
    return _compared(_digests(run), _digests(out), unlike)


def _unlike(made: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Versions that differ from those that the run was made with."""
    packages = made.get("packages")
    then = {"mixprec": made.get("mixprec"), **(packages if isinstance(packages, dict) else {})}
    now = {name: VERSION if name == "mixprec" else importlib.metadata.version(name) for name in then}
    return {name: (str(then[name]), now[name]) for name in then if then[name] != now[name]}


def _digests(folder: Path) -> dict[str, str]:
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: artifacts.sha256_file(path) for name, path in found.items() if name not in _PASSING}


def _compared(first: dict[str, str], second: dict[str, str], unlike: dict[str, tuple[str, str]]) -> Reproduced:
    both = first.keys() & second.keys()
    other = sorted(name for name in both if first[name] != second[name])
    missing, added = sorted(first.keys() - both), sorted(second.keys() - both)
    return Reproduced(len(both) - len(other), other, missing, added, unlike)
