"""Arguments of the API's functions as parts of a recipe."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mixprec.core.errors import UserError, from_pydantic

Kind = TypeVar("Kind", bound=BaseModel)


def checked(kind: type[Kind], function: str, **values: Any) -> Kind:
    """A recipe's part from arguments, with the recipe's checks. Raises UserError naming all that are wrong."""
    try:
        return kind.model_validate(values)
    except ValidationError as problem:
        raise from_pydantic(problem, f"mixprec {function}", kind) from None


def given(**values: Any) -> dict[str, Any]:
    """The arguments that were given: those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def positive(function: str, **values: float) -> None:
    """Raises UserError for a value that is not greater than 0."""
    for name, value in values.items():
        if not value > 0:
            raise UserError(f"mixprec {function}: {name}: {value} is not greater than 0")
