"""Text of a hub dataset at a pinned revision, through the ``datasets`` package, which is an extra."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mixprec.calibration.spec import HubSource
from mixprec.errors import UserError

_INSTALL = "pip install 'mixprec[hub]'"


def rows(source: HubSource) -> list[str]:
    """The texts of the dataset's column, in order.

    Raises UserError where ``datasets`` is not installed, the dataset can't be loaded, a folder takes its name, another
    revision came, the column is not there, or it holds something else than text.
    """
    data = _load(source)
    _check_revision(data, source)
    if source.column not in data.column_names:
        raise UserError(
            f"calibration: {source}: column: {source.column!r} is not there; there are {', '.join(data.column_names)}"
        )
    return list(_texts(data[source.column], source))


def _load(source: HubSource) -> Any:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise UserError(f"calibration: {source}: hub datasets need the datasets package; run: {_INSTALL}") from None
    if Path(source.dataset).exists():
        # datasets would take it for the dataset, and the revision would pin nothing.
        raise UserError(
            f"calibration: {source}: {source.dataset} is a folder here, which goes before the hub's dataset; run in "
            "another folder, or write text: PATH"
        )
    files = {source.split.partition("[")[0]: list(source.files)} if source.files else None
    try:
        return datasets.load_dataset(
            source.dataset,
            source.name,
            data_files=files,
            split=source.split,
            revision=source.revision,
            keep_in_memory=False,  # so that it says where the cache is
            # Old versions of datasets can run a dataset's own script.
            trust_remote_code=False,
        )
    except Exception as problem:  # no network, no such dataset, revision, split, file: all of many kinds
        reason = (str(problem).strip() or "no reason given").splitlines()[0][:200]
        raise UserError(
            f"calibration: {source}: revision {source.revision[:12]}…, split {source.split}: can't be loaded "
            f"({type(problem).__name__}: {reason})"
        ) from None


def _check_revision(data: Any, source: HubSource) -> None:
    """Where the hub can't be reached, datasets takes the revision that its cache has; a folder there has its name."""
    folders = {part for file in data.cache_files for part in Path(file["filename"]).parts}
    if source.revision not in folders:
        raise UserError(
            f"calibration: {source}: revision {source.revision[:12]}… could not be fetched, and the cache of datasets "
            "has another one; try again with a network"
        )


def _texts(column: Iterable[Any], source: HubSource) -> Iterator[str]:
    for number, text in enumerate(column):
        if not isinstance(text, str):
            raise UserError(
                f"calibration: {source}: column: {source.column} holds {type(text).__name__} in row {number}, no text; "
                "choose another column, or a part of the split without it"
            )
        yield text
