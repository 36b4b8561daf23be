"""GGUF models as safetensors checkpoints in the user's cache, each made once (gguf/convert.py).

Everything behind this file sees a folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from mixprec.core import artifacts, locks, publish
from mixprec.core.errors import UserError
from mixprec.core.progress import console
from mixprec.models.gguf import parts

#: Raised when GGUF files are read in another way: they are converted again then (tests/test_stage_rules.py).
RULES = 3
#: Checksums of a conversion's files. Its name has no ending of those that tell models apart (``modelfiles.identity``).
_CHECKSUMS = ".checksums"


def cache_folder() -> Path:
    """Where converted models lie: ``$MIXPREC_CACHE``, else ``~/.cache/mixprec``."""
    return Path(os.environ.get("MIXPREC_CACHE") or Path.home() / ".cache" / "mixprec")


class Unconverted(UserError):
    """A GGUF model that is not converted yet, inside ``without_converting``."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: is not converted yet")
        self.path = path


_converting: ContextVar[bool] = ContextVar("converting", default=True)


@contextmanager
def without_converting() -> Iterator[None]:
    """Inside, GGUF models are known by their headers alone: ``load_config`` works, ``resolve`` raises Unconverted."""
    before = _converting.set(False)
    try:
        yield
    finally:
        _converting.reset(before)


def converted(path: Path, name: str) -> Path:
    """Convert a GGUF model, all of its parts, to a 16-bit safetensors checkpoint in the cache, once per content."""
    files = parts.files_of(path)
    digests = [artifacts.sha256_file(file) for file in files]
    target = cache_folder() / "models" / f"{name}-{artifacts.fingerprint(RULES, *digests)[:12]}"
    if not _is_converted(target):
        if not _converting.get():
            raise Unconverted(path)
        # Several processes need it at once where a first run starts many: one converts, the others wait for it.
        with locks.once(target, "MIXPREC_CACHE"):
            if not _is_converted(target):
                if target.is_dir():
                    console.print(f"{target}: was changed or damaged since it was written; converted again")
                    publish.remove(target)
                from mixprec.models.gguf.convert import convert  # brings transformers and torch, for a first use alone

                convert(path, files[0], target, _CHECKSUMS)
    return target


def _is_converted(target: Path) -> bool:
    """Whether a conversion is in the cache, byte for byte as it was written."""
    try:
        known = artifacts.read_object(target / _CHECKSUMS)
        return all(artifacts.sha256_file(target / name) == digest for name, digest in known.items())
    except UserError:  # a file is gone, or the checksums are damaged
        return False
