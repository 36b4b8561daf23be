"""Reading recipes, and finding them and what they name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mixprec.core import artifacts, parsing
from mixprec.core.errors import UserError, from_pydantic, listed
from mixprec.recipe.schema import Recipe

#: Prefix of sources that lie in the data folder: ``data:calibration/wikitext2_raw_test.txt``.
_DATA = "data:"
DATA_VARIABLE = "MIXPREC_DATA"
GIVE_DATA = f"give --data FOLDER, set {DATA_VARIABLE}, or add data: to the recipe"


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; ``overrides`` are ``key.sub=value`` with YAML values.

    Raises UserError naming the file and everything that is wrong with it.
    """
    chosen, problems = read(path, overrides)
    if problems:
        raise UserError(listed(str(path), problems))
    return chosen


def read(path: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, list[str]]:
    """A recipe, and what of its parts does not fit together: who looks for more that is wrong with it goes on.

    Raises UserError naming the file where its keys and values are no recipe's.
    """
    try:
        data = parsing.parse_yaml(artifacts.read_text(path))
    except parsing.Malformed as problem:
        raise UserError(f"{problem.where(path)}: {problem}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys; see mixprec ls for examples")
    for override in overrides:
        _override(data, override)
    problems: list[str] = []
    try:
        return Recipe.model_validate(data, context=problems), problems
    except ValidationError as problem:
        raise from_pydantic(problem, str(path), Recipe) from None


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    *path, last = key.split(".")
    if not equals or not all([*path, last]):
        raise UserError(f"--set {override!r}: write key.sub=value, for example model.dtype=bfloat16")
    for part in path:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise UserError(f"--set {override!r}: {part} holds no keys")
    try:
        data[last] = parsing.parse_yaml(value)
    except parsing.Malformed as problem:
        raise UserError(f"--set {override!r}: {problem}") from None


def data_folder(recipe: Recipe, option: Path | None) -> Path | None:
    """Where ``data:`` sources lie: --data, else MIXPREC_DATA, else the recipe's ``data`` key."""
    chosen = option or os.environ.get(DATA_VARIABLE) or recipe.data
    return Path(chosen).expanduser() if chosen else None


def locate(source: str, data: Path | None) -> str:
    """A source with ``data:`` replaced by the data folder.

    Raises UserError where there is no data folder or no such file in it.
    """
    if not in_data(source):
        return source
    if data is None:
        raise UserError(f"{source}: no data folder is known; {GIVE_DATA}")
    path = data / source.removeprefix(_DATA)
    if not path.is_file():
        raise UserError(f"{source}: {path} does not exist; check --data, {DATA_VARIABLE} or the recipe's data key")
    return str(path)


def in_data(source: str) -> bool:
    """Whether a source lies in the data folder."""
    return source.startswith(_DATA)


def catalogue() -> dict[str, Path]:
    """Recipes that come with mixprec, by name, ``quickstart`` or ``paper/table1_llama_8b``: a wheel has them in the
    package (setup.py), a checkout beside it."""
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    folder = installed if installed.is_dir() else package.parent / "recipes"
    found = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.relative_to(folder).parts), path))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}


def find(name: str) -> Path:
    """A recipe's file, by path or by its name in the catalogue, with or without its folder.

    Raises UserError where there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = catalogue()
    wanted = name.removesuffix(".yaml").removeprefix("recipes/")
    for each, where in known.items():
        if wanted in (each, where.stem):
            return where
    raise UserError(f"{name}: no such recipe; there are {', '.join(known)}, or give a path")
