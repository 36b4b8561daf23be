"""Uploading a checkpoint to the hub, only where a flag asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from mixprec.checkpoint.integrity import verify
from mixprec.core.errors import UserError, reason


def push(folder: Path, repository: str, api: Any = None) -> str:
    """Upload a finished checkpoint into ``repository`` (owner/name), made private where it isn't there; its address.

    ``api``: a HfApi. Raises UserError for a name that is none, a checkpoint that is damaged, and where the hub refuses.
    """
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise UserError(f"--push-to-hub: {repository!r} is no repository; write owner/name")
    verify(folder)
    chosen = api or HfApi()
    try:
        chosen.create_repo(repository, private=True, exist_ok=True)
        commit = chosen.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Written by mixprec")
    except Exception as problem:  # the hub raises many kinds: no token, no right, no network
        remedy = "check the token (hf auth login) and the network"
        raise UserError(f"--push-to-hub: {repository}: {reason(problem)}; {remedy}") from None
    return str(getattr(commit, "commit_url", repository))
