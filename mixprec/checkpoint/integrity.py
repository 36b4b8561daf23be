"""Checksums of a checkpoint's files: written into mixprec.json when it is finished, compared before it is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from mixprec.core import artifacts, publish, seals
from mixprec.core.errors import UserError
from mixprec.core.shapes import Count, Shape, check
from mixprec.models.modelfiles import CARD, README


class _File(Shape):
    sha256: str
    bytes: Count


class _Line(Shape):
    format: str
    sparsity: str | None = None


class _Plan(Shape):
    modules: dict[str, _Line] = Field(default_factory=dict)


class _Card(Shape):
    files: dict[str, _File] | None = None
    plan: _Plan = _Plan()


def weight_bytes(folder: Path) -> int | None:
    """Bytes of a checkpoint's files of weights; None for a model on the hub."""
    if not folder.is_dir():
        return None
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix.lower() in (".safetensors", ".gguf"))


def digests(folder: Path) -> dict[str, dict[str, Any]]:
    """Path within the folder -> sha256 and bytes, of all files but mixprec.json itself and the model card.

    Results are added to the card later.
    """
    own = (folder / CARD, folder / README)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path not in own)
    return {
        path.relative_to(folder).as_posix(): {"sha256": artifacts.sha256_file(path), "bytes": path.stat().st_size}
        for path in files
    }


def card_of(folder: Path) -> dict[str, Any]:
    """What mixprec.json says; empty where there is none.

    Raises UserError where it is broken, or what is read of it has another shape.
    """
    if not (folder / CARD).is_file():
        return {}
    card = artifacts.read_json(folder / CARD)
    if not isinstance(card, dict):
        raise UserError(f"{folder / CARD}: was not written by mixprec, or damaged; make the checkpoint again")
    return check(card, folder / CARD, _Card)


def verify(folder: Path) -> bool:
    """Whether the files are those that mixprec wrote; False for a checkpoint without checksums.

    Raises UserError naming the file that is missing, cut or changed.
    """
    known = card_of(folder).get("files")
    if known is None:
        return False
    for name, entry in known.items():
        path = publish.within(folder, name)
        remedy = "make the checkpoint again, or fetch it again"
        if not path.is_file():
            raise UserError(f"{path}: missing, {CARD} lists it; {remedy}")
        if path.stat().st_size != entry["bytes"]:
            raise UserError(f"{path}: {path.stat().st_size} bytes, {CARD} has {entry['bytes']}; {remedy}")
        if artifacts.sha256_file(path) != entry["sha256"]:
            raise UserError(f"{path}: its sha256 is not the one in {CARD}: it was changed or damaged; {remedy}")
    return True


def seal(folder: Path, card: Mapping[str, Any]) -> None:
    """Write mixprec.json, last of all: ``card`` and the checksums of what is there."""
    publish.write_json(folder / CARD, seals.sealed({**card, "files": digests(folder)}))
