"""Pages of docs of which a part is written by a script, between two marks that name it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


def filled(page: Path, name: str, made: str) -> str:
    """The page's text with ``made`` between the marks of ``name``."""
    return within(page.read_text(encoding="utf-8"), name, made)


def within(text: str, name: str, made: str) -> str:
    """The same of a page's text."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, _, rest = text.partition(begin)
    return before + begin + "\n" + made + "\n" + end + rest.partition(end)[2]


def main(page: Path, made: Callable[[], str]) -> None:
    """Write the page, or with --check say that it is stale."""
    if "--check" in sys.argv:
        if page.read_text(encoding="utf-8") != made():
            raise SystemExit(f"{page}: is stale; run python scripts/{Path(sys.argv[0]).name}")
    else:
        page.write_text(made(), encoding="utf-8")
