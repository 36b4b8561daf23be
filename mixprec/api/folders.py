"""Where the functions of the API work."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mixprec.core import locks


@contextmanager
def folder_for(out: str | Path | None) -> Iterator[Path]:
    """``out``, alone in it; or a folder that goes at the end.

    Raises UserError where another process is at work in ``out``.
    """
    if out is None:
        with tempfile.TemporaryDirectory(prefix="mixprec-") as name:
            yield Path(name)
    else:
        with locks.folder(Path(out)):
            yield Path(out)
