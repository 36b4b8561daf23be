"""The recipe in a run's folder, read again."""

from __future__ import annotations

from pathlib import Path

from mixprec import recipe
from mixprec.core.errors import UserError, from_pydantic
from mixprec.core.parsing import Malformed, parse_yaml


def recipe_in(text: str, path: Path) -> recipe.Recipe:
    """The recipe that a run has written down. Raises UserError where it isn't one here."""
    from pydantic import ValidationError

    try:
        return recipe.Recipe.model_validate(parse_yaml(text))
    except Malformed as problem:
        raise UserError(f"{problem.where(path)}: {problem}") from None
    except ValidationError as problem:
        raise from_pydantic(problem, str(path), recipe.Recipe) from None
