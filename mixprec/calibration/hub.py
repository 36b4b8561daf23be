"""Text of a hub dataset at a pinned revision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from mixprec.calibration.spec import HubSource
from mixprec.core import hub
from mixprec.core.errors import UserError


def rows(source: HubSource) -> list[str]:
    """The texts of the dataset's column, in order.

    Raises UserError for what ``hub.load_dataset`` refuses, and where the column is not there or holds something else
    than text.
    """
    data = hub.load_dataset(
        source.dataset,
        source.revision,
        name=source.name,
        split=source.split,
        files=source.files,
        where=f"calibration: {source}",
        instead="write text: PATH",
    )
    if source.column not in data.column_names:
        raise UserError(
            f"calibration: {source}: column: {source.column!r} is not there; there are {', '.join(data.column_names)}"
        )
    return list(_texts(data[source.column], source))


def _texts(column: Iterable[Any], source: HubSource) -> Iterator[str]:
    for number, text in enumerate(column):
        if not isinstance(text, str):
            raise UserError(
                f"calibration: {source}: column: {source.column} holds {type(text).__name__} in row {number}, no text; "
                "choose another column, or a part of the split without it"
            )
        yield text
