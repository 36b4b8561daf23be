"""Types, shapes and ranges of what is read from JSON: pydantic models of the keys that somebody reads.

Files come from other people and other versions. Keys that nothing reads are let through; one that is read and has
another shape is told by name, before anything is made from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mixprec.core.errors import from_pydantic

#: Larger than any size in bytes, smaller than what charts and formats can't hold.
_HUGE = 10**18
Number = Annotated[float, Field(ge=-_HUGE, le=_HUGE)]
Count = Annotated[int, Field(ge=0, le=_HUGE)]
Pair = Annotated[list[Number], Field(min_length=2, max_length=2)]
Ranks = Annotated[list[Count], Field(min_length=2, max_length=2)]


class Shape(BaseModel):
    """Strict: text is no number and true is none either."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


def check(data: dict[str, Any], path: Path, shape: type[BaseModel]) -> dict[str, Any]:
    """``data`` of the file ``path``, as it is. Raises UserError that lists every key of another shape."""
    try:
        shape.model_validate(data)
    except ValidationError as problem:
        raise from_pydantic(problem, str(path), shape) from None
    return data
