"""Recipes: run, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mixprec import pipeline, recipe
from mixprec.core import artifacts, locks
from mixprec.core.errors import UserError
from mixprec.core.parsing import dump_yaml
from mixprec.core.progress import OnStep, telling
from mixprec.recipe import Recipe
from mixprec.report.html import write_report
from mixprec.results.run import RunResult


def run(
    what: str | Path | Recipe,
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    change: Sequence[str] = (),
    progress: OnStep | None = None,
) -> RunResult:
    """Run a recipe from end to end: a file, a name in ``mixprec ls``, or a Recipe, which needs ``out``.

    ``out``: the run's folder, default runs/<recipe>; what is already there is kept, and a killed run continues.
    ``data``: folder of data: sources. ``change``: keys, as in ["model.dtype=bfloat16"].

    Raises UserError for all that is wrong with the recipe, at once.
    """
    known: list[str] = []
    if isinstance(what, Recipe):
        if out is None or change:
            raise UserError("run: a Recipe needs out, a folder, and takes no change")
        chosen, name, where = what, Path(out).name, ""
        text = f"# mixprec run {Path(out) / 'recipe.yaml'} --out {out}\n{text_of(what)}"
    else:
        path = recipe.find(str(what))
        chosen, known = recipe.read(path, change)
        name, where = path.stem, str(path)
        text = text_of(chosen) if change else artifacts.read_text(path)
    folder = Path(out) if out is not None else Path("runs") / name
    with telling(progress):
        made = pipeline.Run(chosen, text, name, folder, None if data is None else Path(data))
        made.check(where, known)
        return RunResult(folder, made.run())


def text_of(chosen: Recipe) -> str:
    """A recipe as YAML, without what has its default."""
    return dump_yaml(chosen.model_dump(mode="json", exclude_defaults=True))


def report(folder: str | Path) -> RunResult:
    """Write a run's report.html and pictures again.

    Raises UserError where there is no run, or it is unfinished.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a run")
    with locks.folder(folder):
        write_report(folder)
    return RunResult.load(folder)
