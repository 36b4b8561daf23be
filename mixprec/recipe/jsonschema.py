"""The JSON Schema of recipes: editors complete and check keys and values by it while one is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from mixprec.recipe.schema import Recipe

#: Beside the recipes, which name it in a comment that editors understand.
FILE: Final = "recipe.schema.json"
#: What such a comment begins with (github.com/redhat-developer/yaml-language-server).
MARK: Final = "# yaml-language-server: $schema="


def schema() -> dict[str, Any]:
    """What a recipe's keys and values are. What they ask of one another, ``mixprec validate`` alone knows."""
    made = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_plain(made), "title": "mixprec recipe"}


def pointing_to(text: str, file: Path) -> str:
    """A recipe's text whose comment for editors names the schema's ``file``."""
    lines = text.splitlines(keepends=True)
    return "".join(f"{MARK}{file.as_posix()}\n" if line.startswith(MARK) else line for line in lines)


def _plain(part: Any) -> Any:
    """Docstrings without the marks of their markup, on one line."""
    if isinstance(part, list):
        return [_plain(each) for each in part]
    if not isinstance(part, dict):
        return part
    found = {key: _plain(each) for key, each in part.items()}
    if isinstance(said := found.get("description"), str):
        found["description"] = " ".join(said.replace("``", "`").split())
    return found
