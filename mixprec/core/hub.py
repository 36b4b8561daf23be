"""The hub: which commit of a model is meant, and datasets, through the ``datasets`` package, which is an extra."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.file_download import repo_folder_name

from mixprec.core.errors import UserError, reason

_COMMIT = re.compile(r"[0-9a-f]{40}")
_INSTALL = "pip install 'mixprec[hub]'"


def commit(repository: str, revision: str | None = None) -> str:
    """The commit that a branch or tag of a model's repository stands for; ``main`` by default.

    Looked up once per process, so that all of a run sees one commit (``forget``). Without network it is the commit that
    this machine fetched last under that name. Raises UserError where neither the hub nor the cache knows one.
    """
    name = revision or "main"
    return name if _COMMIT.fullmatch(name) else _found(repository, name)


def forget() -> None:
    """A new run looks up its commits again: branches move."""
    _found.cache_clear()


@functools.cache
def _found(repository: str, name: str) -> str:
    try:
        why, found = "the hub names no commit", HfApi().model_info(repository, revision=name, timeout=20).sha
    except (RepositoryNotFoundError, RevisionNotFoundError) as problem:
        raise UserError(
            f"revision {name}: the hub has none that you may read ({type(problem).__name__}); check both names, or log "
            "in (hf auth login)"
        ) from None
    except Exception as problem:  # offline, no network, a server in trouble: of many kinds
        why, found = reason(problem), None
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    fetched = folder / "refs" / name
    if found is None and fetched.is_file():
        found = fetched.read_text(encoding="utf-8").strip()
    if found is None:
        raise UserError(
            f"revision {name}: not in the hub's cache on this machine, and the hub can't be asked "
            f"({why}); check the name and the network, or give a local folder"
        )
    return found


def load_dataset(
    dataset: str,
    revision: str | None,
    *,
    where: str,
    instead: str,
    name: str | None = None,
    split: str = "train",
    files: Sequence[str] = (),
) -> Any:
    """A split of a hub dataset; errors begin with ``where`` and offer ``instead`` to who has a file.

    ``revision``: a commit, or None for whatever the hub has (the caller checks what came).
    Raises UserError where ``datasets`` is not installed, the dataset can't be loaded, a folder takes its name, or
    another revision came.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise UserError(f"{where}: hub datasets need the datasets package; run: {_INSTALL}") from None
    if Path(dataset).exists():
        # datasets would take it for the dataset, and the revision would pin nothing.
        raise UserError(
            f"{where}: {dataset} is a folder here, which goes before the hub's dataset; run in another folder, "
            f"or {instead}"
        )
    try:
        data = datasets.load_dataset(
            dataset,
            name,
            data_files={split.partition("[")[0]: list(files)} if files else None,
            split=split,
            revision=revision,
            keep_in_memory=False,  # so that it says where the cache is
            # Old versions of datasets can run a dataset's own script.
            trust_remote_code=False,
        )
    except Exception as problem:  # no network, no such dataset, revision, split, file: all of many kinds
        reason = (str(problem).strip() or "no reason given").splitlines()[0][:200]
        pinned = f"revision {revision[:12]}…, " if revision else ""
        raise UserError(
            f"{where}: {pinned}split {split}: can't be loaded ({type(problem).__name__}: {reason})"
        ) from None
    if revision:
        _check_revision(data, revision, where)
    return data


def _check_revision(data: Any, revision: str, where: str) -> None:
    """Where the hub can't be reached, datasets takes the revision that its cache has; a folder there has its name."""
    folders = {part for file in data.cache_files for part in Path(file["filename"]).parts}
    if revision not in folders:
        raise UserError(
            f"{where}: revision {revision[:12]}… could not be fetched, and the cache of datasets has another one; "
            "try again with a network"
        )
